//! The built-in tasks return the same results as the standard tools.

use std::f64::consts::PI;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{procpool, run, wait};

/// Real files of all kinds: sources, and a piece of what the compiler has made of them.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for dir in ["src", "src/tasks", "src/compare", "tests/cli"] {
        for entry in fs::read_dir(root.join(dir)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                files.push(path);
            }
        }
    }
    let piece = dir.join("piece of a program");
    let mut content = Vec::new();
    let program = File::open(env!("CARGO_BIN_EXE_procpool")).unwrap();
    program.take(1 << 20).read_to_end(&mut content).unwrap();
    fs::write(&piece, content).unwrap();
    files.push(piece);
    files.sort();
    assert!(files.len() > 30);
    files
}

fn run_over(task: &str, files: &[PathBuf]) -> Vec<csv::ByteRecord> {
    let mut arguments: Vec<OsString> =
        ["run", "--procs", "3", "--format", "csv", "--task", task].map(Into::into).into();
    arguments.extend(files.iter().map(|file| file.clone().into_os_string()));
    let ended = run(&arguments);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let rows = ended.csv();
    assert_eq!(rows.len(), files.len());
    rows
}

#[test]
fn sha256_is_what_sha256sum_says() {
    let dir = tempfile::tempdir().unwrap();
    let files = files(dir.path());
    let rows = run_over("sha256", &files);
    let expected = Command::new("sha256sum").arg("--zero").args(&files).output().unwrap();
    let expected = expected.stdout.split(|byte| *byte == 0).filter(|line| !line.is_empty());
    for (row, line) in rows.iter().zip(expected) {
        assert_eq!(&row[6], &line[..64]);
        assert_eq!(&row[5], &line[66..]);
    }
}

#[test]
fn wordcount_is_what_wc_says_in_any_locale() {
    let dir = tempfile::tempdir().unwrap();
    let files = files(dir.path());
    for locale in ["C", "C.UTF-8"] {
        let mut command = procpool(&["run", "--format", "csv", "--task", "wordcount"]);
        let ended = wait(command.args(&files).env("LC_ALL", locale).spawn().unwrap());
        for (row, file) in ended.csv().iter().zip(&files) {
            let wc = Command::new("wc").arg(file).env("LC_ALL", locale).output().unwrap();
            let wc = String::from_utf8_lossy(&wc.stdout).into_owned();
            let expected: Vec<&str> = wc.split_whitespace().take(3).collect();
            let counted = [6, 7, 8].map(|field| String::from_utf8(row[field].to_vec()).unwrap());
            assert_eq!(counted, expected[..], "{file:?} in {locale}");
        }
    }
}

#[test]
fn a_range_of_square_roots_is_exact() {
    let ended = run(&["run", "--task", "sqrt", "--format", "csv", "10..3000", "2.25"]);
    let rows = ended.csv();
    for (x, row) in (10..3000).zip(&rows) {
        let root: f64 = std::str::from_utf8(&row[6]).unwrap().parse().unwrap();
        assert_eq!(root, f64::from(x).sqrt());
    }
    assert_eq!((rows.len(), &rows[2990][6]), (2991, &b"1.5"[..]));
}

#[test]
fn a_seed_gives_the_same_pi_whoever_works_on_it() {
    let results = |procs: &str, task: &str| {
        let ended =
            run(&["run", "--procs", procs, "--task", task, "--points", "5000", "--format", "json"]);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        ended.json().iter().map(|row| row["result"].clone()).collect::<Vec<_>>()
    };
    for task in ["pi", "parzen"] {
        assert_eq!(results("1", task), results("4", task));
    }
    let pi = results("2", "pi");
    assert!(pi.iter().all(|row| (row["pi"].as_f64().unwrap() - PI).abs() < 0.15), "{pi:?}");
    let density = results("2", "parzen")[4]["density"].as_f64().unwrap();
    assert!((density - 0.159).abs() < 0.04, "{density}");
}

#[test]
fn plots_are_written_one_per_seed_and_turned_pictures_beside_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).into_os_string().into_string().unwrap();
    let (plots, turned, back) = (path("plots"), path("turned"), path("back"));
    let made = run(&["run", "--count", "3", "--task", "plot", "--out", &plots, "--to", "png"]);
    assert_eq!(made.code, Some(0), "{made:?}");

    let images = |from: &str, to: &str, format: &str| {
        let mut names: Vec<_> =
            fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.sort();
        assert_eq!(names.len(), 3);
        let mut command = procpool(&["run", "--task", "image", "--out", to, "--to", format]);
        let ended = wait(command.args(names).spawn().unwrap());
        assert_eq!(ended.code, Some(0), "{ended:?}");
    };
    images(&plots, &turned, "webp");
    images(&turned, &back, "png");
    for seed in 0..3 {
        let open = |dir: &str, end: &str| image::open(format!("{dir}/plot_{seed}.{end}")).unwrap();
        let original = open(&plots, "png");
        assert_eq!(open(&turned, "webp").to_rgb8(), original.rotate180().to_rgb8());
        assert_eq!(open(&back, "png").to_rgb8(), original.to_rgb8());
    }
}

#[test]
fn a_broken_picture_or_one_too_many_of_a_name_fails_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    };
    let inputs = [path("a/x.png"), path("broken.png"), path("b/x.png"), path("a/y.png")];
    for input in &inputs {
        image::RgbImage::new(4, 4).save(input).unwrap();
    }
    fs::write(&inputs[1], "no picture").unwrap();
    let mut command = procpool(&["run", "--task", "image", "--format", "json", "--out"]);
    let ended = wait(command.arg(dir.path().join("out/.")).args(&inputs).spawn().unwrap());
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let rows = ended.json();
    let failed: Vec<bool> = rows.iter().map(|row| row.get("error").is_some()).collect();
    assert_eq!(failed, [false, true, true, false], "{rows:?}");
    assert!(rows[1]["error"].as_str().unwrap().contains("broken.png"));
    assert!(rows[2]["error"].as_str().unwrap().contains("another input of this run"));
    assert_eq!(fs::read_dir(dir.path().join("out")).unwrap().count(), 2);
}

#[test]
fn the_name_of_a_picture_need_not_be_text() {
    let dir = tempfile::tempdir().unwrap();
    let name = OsString::from_vec(b"p\xff.png".to_vec());
    let (source, out) = (dir.path().join(&name), dir.path().join("out"));
    image::RgbImage::new(2, 3).save(&source).unwrap();
    let mut command = procpool(&["run", "--task", "image", "--format", "csv", "--out"]);
    let ended = wait(command.arg(&out).arg(&source).spawn().unwrap());
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(&ended.csv()[0][8], out.join(&name).as_os_str().as_bytes());
    assert!(out.join(&name).is_file());
}

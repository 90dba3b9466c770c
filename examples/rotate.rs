//! Rotates all pictures of a directory by 180° and writes them as PNG to another directory. A file that is
//! not a picture is an error of its own task, and so is a picture that crashes the decoder.
//!
//! Without arguments, it creates three pictures and one file that is not a picture.
//!
//! ```text
//! $ cargo run --example rotate
//! broken.jpg: Format error decoding Jpeg: Error parsing image. Illegal start bytes:6E6F
//! high.webp -> high.png, 40 x 80
//! square.jpg -> square.png, 64 x 64
//! wide.png -> wide.png, 120 x 30
//! 3 of 4 rotated
//! ```

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use image::RgbImage;
use procpool::Pool;

/// Rotates the picture `from` and writes it to `to`. Returns its width and height.
fn rotate((from, to): (PathBuf, PathBuf)) -> Result<(u32, u32), String> {
    let rotated = image::open(&from).map_err(|error| error.to_string())?.rotate180();
    rotated.save(&to).map_err(|error| error.to_string())?;
    Ok((rotated.width(), rotated.height()))
}

/// Creates three pictures and one file that is not a picture.
fn samples() -> Result<PathBuf, Box<dyn Error>> {
    let dir = std::env::temp_dir().join(format!("procpool-rotate-{}", std::process::id()));
    fs::create_dir_all(&dir)?;
    for (name, width, height) in
        [("wide.png", 120, 30), ("high.webp", 40, 80), ("square.jpg", 64, 64)]
    {
        let paint = |x, y| image::Rgb([(255 * x / width) as u8, (255 * y / height) as u8, 128]);
        RgbImage::from_fn(width, height, paint).save(dir.join(name))?;
    }
    fs::write(dir.join("broken.jpg"), "no picture")?;
    Ok(dir)
}

fn rotate_all(from: &Path, to: &Path) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(to)?;
    let mut files = Vec::new();
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        if path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    let name = |path: &Path| path.file_name().unwrap_or_default().display().to_string();
    let jobs: Vec<_> = files
        .iter()
        .map(|path| {
            (path.clone(), to.join(path.file_name().unwrap_or_default()).with_extension("png"))
        })
        .collect();
    let pool = Pool::new(0)?;
    let mut rotated = 0;
    for ((from, to), answer) in jobs.iter().zip(pool.imap(rotate, jobs.clone())) {
        match answer {
            Ok(Ok((width, height))) => {
                println!("{} -> {}, {width} x {height}", name(from), name(to));
                rotated += 1;
            }
            Ok(Err(reason)) => println!("{}: {reason}", name(from)),
            Err(error) => println!("{}: {error}", name(from)),
        }
    }
    println!("{rotated} of {} rotated", jobs.len());
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    procpool::init();
    let args: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    match args.as_slice() {
        [from, to] => rotate_all(from, to),
        [] => {
            let dir = samples()?;
            let done = rotate_all(&dir, &dir.join("rotated"));
            fs::remove_dir_all(&dir)?;
            done
        }
        _ => Err("usage: rotate [FROM_DIR TO_DIR]".into()),
    }
}

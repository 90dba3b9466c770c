//! `--report`: the page about a run, in a browser.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::browser::{self, Browser};
use crate::support::run;

/// An input that would become markup or a script, wherever it was not escaped.
const HOSTILE: &str = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">";

/// Fails for inputs that divide by 7, and prints the hostile text.
fn report(file: &Path, extra: &[&str]) -> String {
    let script = "sleep 0.0$(($2 % 30 + 10)); test $(($2 % 7)) -ne 0 || { echo \"$1\"; exit 3; }";
    let numbers: Vec<String> = (1..=60).map(|it| it.to_string()).collect();
    let mut arguments = vec!["run", "-qq", "-p3", "--retries", "1", "--report"];
    arguments.extend([file.to_str().unwrap()].iter().chain(extra));
    arguments.extend(["--", "sh", "-c", script, "sh", "{1}", "{2}", ":::", HOSTILE, ":::"]);
    arguments.extend(numbers.iter().map(String::as_str));
    let ended = run(&arguments);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    fs::read_to_string(file).unwrap()
}

#[test]
fn a_page_about_a_run_has_its_numbers_and_needs_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run.html");
    fs::write(&file, "x".repeat(10_000_000)).unwrap();
    let page = report(&file, &[]);
    assert!(page.ends_with("</html>\n") || page.ends_with("</html>"), "nothing old is left");
    assert!(page.contains("<title>procpool: 60 jobs, 8 failed</title>"));
    for tag in ["<link", "<img", "<iframe", "src=", "href=", "@import", "url("] {
        let without_data = page.replace(&HOSTILE.replace('<', "&#60;"), "");
        let count = without_data.matches(tag).count();
        let in_inputs = without_data.matches(&format!("img {tag}")).count();
        assert_eq!(count - in_inputs, 0, "{tag}");
    }
    assert_eq!(page.matches("<script").count(), 2, "the data and the page's own");
    let refused = run(&["run", "--report", "/nowhere/run.html", "3"]);
    assert!(refused.code == Some(2) && refused.stderr.contains("--report"), "{refused:?}");
}

#[test]
fn a_page_is_written_although_the_reader_of_the_output_has_gone_away() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run.html");
    let script = format!(
        "{} run -p2 --report {} --count 1000 -- seq 9999 | head -n 1",
        env!("CARGO_BIN_EXE_procpool"),
        file.display()
    );
    let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
    assert_eq!(output.stderr, b"", "{}", String::from_utf8_lossy(&output.stderr));
    let page = fs::read_to_string(&file).unwrap();
    assert!(page.contains("<title>procpool: ") && page.ends_with("</html>"), "{}", page.len());
}

#[test]
fn in_a_browser_the_page_filters_sorts_zooms_and_answers_to_mouse_and_keyboard() {
    if !browser::is_there() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run.html");
    report(&file, &[]);
    let mut page = Browser::open(&file, [1100, 900]);
    let shown =
        "Array.from(document.querySelectorAll('#failures tbody tr')).filter(it => !it.hidden)";

    // Text stays text.
    assert_eq!(page.text("document.title"), "procpool: 60 jobs, 8 failed");
    assert_eq!(page.value("document.images.length"), 0);
    assert_eq!(page.value("document.scripts.length"), 2);
    let text = page.text("document.querySelector('#failures td:nth-child(2)').textContent");
    assert!(text.starts_with(HOSTILE), "{text}");
    assert!(page.text("document.querySelector('#failures pre').textContent").contains(HOSTILE));

    // The failures.
    assert_eq!(page.value(&format!("{shown}.length")), 8);
    page.click("#search");
    // The end of one input. Its number alone may also be a part of a time.
    "> 49".chars().for_each(|key| page.press(&key.to_string()));
    assert_eq!(page.value(&format!("{shown}.length")), 1);
    assert_eq!(page.text("document.querySelector('#found').textContent"), "1 of 8");
    page.value("(() => { const it = document.querySelector('#search'); it.value = ''; it.dispatchEvent(new Event('input')); })()");
    let numbers = format!("{shown}.map(it => Number(it.cells[0].textContent))");
    page.click("#failures th:first-child button");
    assert_eq!(page.value(&numbers), json!([7, 14, 21, 28, 35, 42, 49, 56]));
    page.click("#failures th:first-child button");
    assert_eq!(page.value(&numbers), json!([56, 49, 42, 35, 28, 21, 14, 7]));
    let sorted = page.text("document.querySelector('#failures th').getAttribute('aria-sort')");
    assert_eq!(sorted, "descending");

    // The timeline: three workers, and the mouse.
    assert!(page.value("document.querySelectorAll('#timeline path').length").as_u64() >= Some(3));
    let detail = "document.querySelector('#detail').textContent";
    page.point_at("#timeline", [0.5, 0.4]);
    page.wait_until("a job is described", &format!("{detail}.startsWith('job ')"));
    let text = page.text(detail);
    assert!(text.contains("worker ") && text.contains("PID ") && text.contains(" ms"), "{text}");

    // Zoom by button and by key, and steps by key.
    let range = "document.querySelector('#range').textContent";
    let all = page.text(range);
    page.click("#zoom-in");
    let half = page.text(range);
    assert_ne!(half, all);
    page.click("#zoom-all");
    assert_eq!(page.text(range), all);
    page.value("document.querySelector('#timeline').focus()");
    page.press("+");
    assert_ne!(page.text(range), all);
    page.press("ArrowRight");
    page.press("0");
    assert_eq!(page.text(range), all);
    let before = page.text(detail);
    page.press("n");
    assert_ne!(page.text(detail), before);
    page.press("p");
    assert_eq!(page.text(detail), before);
    page.press("ArrowDown");
    assert_ne!(page.text(detail), before);

    // On a narrow screen, nothing is wider than it.
    let narrow = json!({"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": false});
    page.call("Emulation.setDeviceMetricsOverride", narrow);
    page.wait_until("it is narrow", "innerWidth === 400");
    let wide = "Array.from(document.body.querySelectorAll('*')).filter(it => !it.closest('.wide') && it.getBoundingClientRect().right > 400).map(it => it.outerHTML.slice(0, 80))";
    assert_eq!(page.value(wide), json!([]));
    // In the dark, the ground is dark.
    let dark = json!({"features": [{"name": "prefers-color-scheme", "value": "dark"}]});
    page.call("Emulation.setEmulatedMedia", dark);
    assert_eq!(page.text("getComputedStyle(document.body).backgroundColor"), "rgb(20, 24, 28)");

    // Nothing was refused, nothing thrown, nothing fetched but the page.
    let other = |entry: &&serde_json::Value| {
        let url = entry["params"]["request"]["url"].as_str().unwrap_or_default();
        !url.starts_with("file://") || !url.ends_with("run.html")
    };
    let log: Vec<_> = page.log.iter().filter(other).collect();
    assert!(log.is_empty(), "{log:?}");
}

#[test]
fn a_page_of_100_000_jobs_opens_at_once() {
    if !browser::is_there() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run.html");
    let ended =
        run(&["run", "-qq", "--report", file.to_str().unwrap(), "--format", "csv", "0..100000"]);
    assert_eq!(ended.code, Some(0));
    let small = dir.path().join("small.html");
    run(&["run", "-qq", "--report", small.to_str().unwrap(), "--format", "csv", "0..10"]);
    let mut page = Browser::open(&small, [1100, 900]);
    let begun = Instant::now();
    page.go(&file);
    page.wait_until("it is drawn", "document.querySelectorAll('#durations rect').length > 0");
    assert_eq!(page.text("document.title"), "procpool: 100,000 jobs, all done");
    // As far as a test may say; a debug build on a busy machine has other worries.
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    // It is thinned out: what is drawn does not grow with the jobs.
    assert!(page.value("document.querySelectorAll('svg *').length").as_u64() < Some(1000));
    let longest = "Math.max(...Array.from(document.querySelectorAll('#timeline path')).map(it => it.getAttribute('d').length))";
    assert!(page.value(longest).as_u64() < Some(100_000));
}

#[test]
fn comparisons_and_isolation_have_pages_with_their_tables_and_pictures() {
    if !browser::is_there() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (isolated, compared) = (dir.path().join("isolate.html"), dir.path().join("compare.html"));
    let ended = run(&["isolate", "--case", "exit", "--report", isolated.to_str().unwrap()]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let quick = ["compare", "--quick", "--repetitions", "1", "--only", "overhead", "--report"];
    let ended = run(&[&quick[..], &[compared.to_str().unwrap()]].concat());
    assert_eq!(ended.code, Some(0), "{ended:?}");

    let mut page = Browser::open(&isolated, [1000, 800]);
    let heading = "document.querySelector('h1').textContent";
    assert_eq!(page.text(heading), "1 of 1 contained (among threads, 0)");
    let cells =
        "Array.from(document.querySelectorAll('td')).map(it => it.textContent.split('\\n')[0])";
    assert_eq!(page.value(cells), json!(["exit", "contained", "not contained"]));
    page.go(&compared);
    assert!(page.value("document.querySelectorAll('tbody tr').length").as_u64() > Some(3));
    let drawn = "Array.from(document.images).every(it => it.complete && it.naturalWidth > 0)";
    page.wait_until("the pictures are drawn", drawn);
    assert_eq!(page.value("document.images.length"), 1);
    let refused = |entry: &&serde_json::Value| entry["method"] != "Network.requestWillBeSent";
    let log: Vec<_> = page.log.iter().filter(refused).collect();
    assert!(log.is_empty(), "{log:?}");
}

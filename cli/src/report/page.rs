//! The page of a report: its template, its data, and its content security policy.

use std::fmt::Write as _;

use anyhow::Result;
use askama::Template;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::jobs::{Failure, Job, Jobs, Lane, MOST_FAILURES, time};
use crate::format;
use crate::spill::base64;
use crate::tasks::command;

pub(super) const STYLE: &str = include_str!("../../templates/report.css");
const SCRIPT: &str = include_str!("../../templates/report.js");

/// Jobs in the lists of the slowest and the largest.
const EXTREMES: usize = 10;

/// How the run ended.
pub(crate) struct RunEnd<'a> {
    /// The exit code.
    pub(crate) code: u8,
    /// The number of inputs that were not started, as far as known.
    pub(crate) not_started: Option<&'a str>,
}

#[derive(Template)]
#[template(path = "report.html")]
struct Page<'a> {
    policy: String,
    style: &'static str,
    script: &'static str,
    title: String,
    command: String,
    facts: Vec<(&'static str, String)>,
    notes: Vec<String>,
    failures: &'a [Failure],
    /// The failures that are not listed.
    more_failures: String,
    slowest: Vec<[String; 2]>,
    largest: Vec<[String; 2]>,
    workers: Vec<[String; 5]>,
    /// JSON in which no character can end the script element.
    data: String,
}

/// The jobs for the script, by columns.
#[derive(Serialize)]
struct Data<'a> {
    /// Microseconds from the start of the run to its end.
    wall: u64,
    lanes: Vec<String>,
    number: Vec<u64>,
    lane: Vec<usize>,
    pid: Vec<u32>,
    attempt: Vec<u32>,
    start: Vec<u64>,
    micros: Vec<u64>,
    memory: Vec<u64>,
    state: Vec<u8>,
    input: Vec<&'a str>,
    /// Index of the job, start, duration and error of each attempt before the last.
    earlier: Vec<(usize, u64, u64, &'a str)>,
}

/// Returns the page.
pub(super) fn render(jobs: &Jobs, end: &RunEnd<'_>) -> Result<String> {
    let wall = jobs.elapsed();
    let total = jobs.total();
    let busy = jobs.shares.iter().fold(0u64, |sum, (_, share)| sum.saturating_add(share.busy));
    let seconds = (wall as f64 / 1e6).max(1e-9);
    let mut facts = vec![
        ("Jobs", format::grouped(total)),
        ("Done", format::grouped(jobs.done)),
        ("Failed", format::grouped(jobs.failed)),
        ("Killed with the run", format::grouped(jobs.killed)),
        ("Retries", format::grouped(jobs.retried)),
    ];
    if let Some(not_started) = end.not_started {
        facts.push(("Not started", not_started.to_owned()));
    }
    facts.extend([
        ("Time", time(wall)),
        ("Jobs a second", format::rate(total as f64 / seconds)),
        ("Work", time(busy)),
        ("At once, on average", format::factor(busy as f64 / 1e6 / seconds)),
        ("Exit code", end.code.to_string()),
        ("Machine", machine()),
    ]);
    let mut notes = Vec::new();
    if jobs.is_cut {
        notes.push(format!(
            "The pictures and lists show the first {} jobs that ended; the numbers count all.",
            format::grouped(jobs.jobs.len() as u64)
        ));
    }
    let more = (jobs.failed + jobs.killed).saturating_sub(MOST_FAILURES as u64);
    let lane_name = |lane: &Lane| match lane.host {
        Some(host) => format!("{host}:{}", lane.worker),
        None => lane.worker.to_string(),
    };
    let mut workers: Vec<_> = jobs.shares.iter().collect();
    workers.sort_by_key(|(lane, _)| (lane.worker, lane_name(lane)));
    let workers = workers.into_iter().map(|(lane, share)| {
        [
            lane_name(lane),
            format::grouped(share.jobs),
            format::grouped(share.failed),
            time(share.busy),
            if share.memory > 0 { format::bytes(share.memory) } else { "–".to_owned() },
        ]
    });
    let columns = Data {
        wall,
        lanes: jobs.shares.iter().map(|(lane, _)| lane_name(lane)).collect(),
        number: jobs.jobs.iter().map(|job| job.number).collect(),
        lane: jobs.jobs.iter().map(|job| job.lane).collect(),
        pid: jobs.jobs.iter().map(|job| job.pid).collect(),
        attempt: jobs.jobs.iter().map(|job| job.attempt).collect(),
        start: jobs.jobs.iter().map(|job| job.start).collect(),
        micros: jobs.jobs.iter().map(|job| job.micros).collect(),
        memory: jobs.jobs.iter().map(|job| job.memory).collect(),
        state: jobs.jobs.iter().map(|job| job.state as u8).collect(),
        input: jobs.jobs.iter().map(|job| job.input.as_str()).collect(),
        earlier: jobs
            .earlier
            .iter()
            .map(|it| (it.job, it.start, it.micros, it.error.as_str()))
            .collect(),
    };
    let extremes = |value: fn(&Job) -> u64, shown: fn(u64) -> String| {
        let mut jobs: Vec<_> = jobs.jobs.iter().filter(|job| value(job) > 0).collect();
        jobs.sort_by_key(|job| std::cmp::Reverse(value(job)));
        let line = |job: &&Job| [job.input.clone(), shown(value(job))];
        jobs.iter().take(EXTREMES).map(line).collect::<Vec<_>>()
    };
    let page = Page {
        policy: policy("img-src 'none'", Some(SCRIPT)),
        style: STYLE,
        script: SCRIPT,
        title: title(jobs),
        command: command_line(),
        facts,
        notes,
        failures: &jobs.failures,
        more_failures: if more > 0 { format::grouped(more) } else { String::new() },
        slowest: extremes(|job| job.micros, time),
        largest: extremes(|job| job.memory, format::bytes),
        workers: workers.collect(),
        data: inert(&serde_json::to_string(&columns)?),
    };
    Ok(page.render()?)
}

/// Returns the content security policy of a page: its own style and script, this for pictures, and nothing
/// from anywhere.
pub(super) fn policy(pictures: &str, script: Option<&str>) -> String {
    let script =
        script.map_or("'none'".to_owned(), |script| format!("'sha256-{}'", digest(script)));
    format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src {script}; {pictures}; base-uri 'none'; \
         form-action 'none'",
        digest(STYLE)
    )
}

/// Returns the command line of this process, as it could be typed.
pub(super) fn command_line() -> String {
    let words: Vec<_> = std::env::args_os()
        .map(|word| command::quote(word.as_encoded_bytes()).into_owned())
        .map(|word| String::from_utf8_lossy(&word).into_owned())
        .collect();
    format::one_line(&words.join(" ")).into_owned()
}

fn title(jobs: &Jobs) -> String {
    let total = jobs.total();
    let noun = if total == 1 { "job" } else { "jobs" };
    match jobs.failed + jobs.killed {
        0 => format!("{} {noun}, all done", format::grouped(total)),
        failed => format!("{} {noun}, {} failed", format::grouped(total), format::grouped(failed)),
    }
}

/// Describes the machine in one line.
fn machine() -> String {
    let system = rustix::system::uname();
    let [host, kernel] = [system.nodename(), system.release()].map(|name| name.to_string_lossy());
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{host}, {cpus} CPUs, Linux {kernel}, procpool {}", env!("CARGO_PKG_VERSION"))
}

/// Replaces the characters that HTML or a script could take for an end.
fn inert(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for character in json.chars() {
        match character {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                // Writing to memory can't fail.
                let _ = write!(text, "\\u{:04x}", u32::from(character));
            }
            other => text.push(other),
        }
    }
    text
}

fn digest(text: &str) -> String {
    let mut digits = Vec::new();
    base64(&Sha256::digest(text.as_bytes()), &mut digits);
    String::from_utf8_lossy(&digits).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_the_data_ends_the_script() {
        let text = inert(r#"["</script><!--&","\u2028"]"#);
        assert!(!text.contains(['<', '>', '&']));
        let back: Vec<String> = serde_json::from_str(&text).unwrap_or_default();
        assert_eq!(back, ["</script><!--&", "\u{2028}"]);
    }
}

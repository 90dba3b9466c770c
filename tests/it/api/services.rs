//! The example programs for services and libraries of strangers: real requests, crashes and SIGTERM.

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::support::{SOON, kill, wait_until};

#[path = "../../programs/load.rs"]
mod load;

use load::Connection;

/// Returns an example's program.
fn example(name: &str) -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let path = tests.parent().unwrap().with_file_name("examples").join(name);
    assert!(path.exists(), "{path:?} is not built: cargo build --workspace --examples");
    path
}

fn run(name: &str) -> String {
    let Output { status, stdout, stderr } = Command::new(example(name)).output().unwrap();
    let text = String::from_utf8(stdout).unwrap();
    assert!(status.success(), "{text}{}", String::from_utf8_lossy(&stderr));
    text
}

#[test]
fn a_plugin_that_crashes_hangs_or_leaks_costs_a_call_and_is_never_in_the_host() {
    let text = run("plugin_host");
    for line in [
        "hello  HELLO",
        "crash  its worker was killed by SIGSEGV while running it",
        "hang   was stopped after its time limit of 2s",
        "leak   its worker ran out of memory while running it",
        "world  WORLD",
        "the plugin is mapped in this process: false",
    ] {
        assert!(text.lines().any(|it| it == line), "{line} is missing:\n{text}");
    }
}

#[test]
fn crashes_are_grouped_by_signal_and_place() {
    let text = run("triage");
    let rows: Vec<Vec<&str>> =
        text.lines().map(|line| line.split_whitespace().take(3).collect()).collect();
    for row in [
        ["SIGSEGV", "read_list", "12"],
        ["SIGSEGV", "read_name", "8"],
        ["SIGABRT", "read_number", "5"],
    ] {
        assert!(rows.contains(&row.to_vec()), "{row:?} is missing:\n{text}");
    }
}

/// The service, on a port of its own.
struct Service {
    child: Child,
    stdout: BufReader<ChildStdout>,
    address: SocketAddr,
}

impl Service {
    fn start() -> Self {
        let mut command = Command::new(example("service"));
        command.arg("127.0.0.1:0").stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on http://").expect(&line);
        Self { child, stdout, address: address.parse().unwrap() }
    }

    fn connect(&self) -> Connection {
        Connection::new(self.address).unwrap()
    }

    /// Uploads something. Returns the status and the text.
    fn upload(&self, bytes: &[u8]) -> (u16, String) {
        let answer = self.connect().ask("POST", "/thumbnail", bytes).unwrap();
        (answer.status, String::from_utf8_lossy(&answer.body).into_owned())
    }

    fn metric(&self, name: &str) -> f64 {
        let page = self.connect().ask("GET", "/metrics", b"").unwrap();
        let page = String::from_utf8(page.body).unwrap();
        let line = page.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name} in:\n{page}")).trim().parse().unwrap()
    }

    /// Sends SIGTERM and waits for the end. Returns what it prints.
    fn stop(mut self) -> String {
        kill(self.child.id(), libc::SIGTERM);
        let mut text = String::new();
        self.stdout.read_to_string(&mut text).unwrap();
        assert!(self.child.wait().unwrap().success(), "{text}");
        text
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_service_answers_good_bad_crashing_and_hanging_uploads() {
    let service = Service::start();
    let answer = service.connect().ask("POST", "/thumbnail", &load::picture()).unwrap();
    let small = image::load_from_memory(&answer.body).unwrap();
    assert_eq!((answer.status, small.width(), small.height()), (200, 128, 96));
    assert_eq!(service.upload(b"no picture").0, 422);
    let (status, reason) = service.upload(b"crash");
    assert_eq!((status, &*reason), (422, "it crashes the decoder\n"));
    assert_eq!(service.upload(b"hang!").0, 504);
    assert_eq!(service.upload(&vec![0; 17 << 20]).0, 413);
    assert_eq!(service.connect().ask("GET", "/nowhere", b"").unwrap().status, 404);
    let ends = "procpool_worker_deaths_total{pool=\"thumbnails\",cause=\"signaled\"}";
    wait_until("the crash is counted", || service.metric(ends) == 1.0);
    assert_eq!(
        service.metric("procpool_worker_deaths_total{pool=\"thumbnails\",cause=\"timed_out\"}"),
        1.0
    );
    assert!(service.metric("procpool_task_run_seconds_count{pool=\"thumbnails\"}") >= 2.0);
    assert!(service.stop().contains("all is answered"));
}

#[test]
fn the_service_sheds_load_when_its_queue_is_full() {
    let service = Service::start();
    // Each worker hangs for a second, and 64 may wait; of more than a hundred CPUs, more would run.
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..250).map(|_| scope.spawn(|| service.upload(b"hang!").0)).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    let count = |wanted| statuses.iter().filter(|status| **status == wanted).count();
    assert_eq!(count(503) + count(504), 250, "{statuses:?}");
    assert!(count(503) > 50 && count(504) >= 64, "{statuses:?}");
    assert_eq!(service.upload(b"no picture").0, 422, "it takes more again");
}

#[test]
fn the_service_answers_what_was_asked_before_sigterm_and_ends() {
    let service = Service::start();
    let mut hangs = service.connect();
    let asks =
        std::thread::spawn(move || hangs.ask("POST", "/thumbnail", b"hang!").unwrap().status);
    wait_until("it runs", || service.metric("procpool_tasks_running{pool=\"thumbnails\"}") == 1.0);
    let (address, begun) = (service.address, Instant::now());
    let text = service.stop();
    assert_eq!(asks.join().unwrap(), 504, "{text}");
    assert!(begun.elapsed() < SOON);
    assert!(TcpStream::connect(address).is_err(), "nobody listens");
}

#[test]
fn under_load_each_request_has_its_answer_and_memory_stays_flat() {
    let seconds = std::env::var("PROCPOOL_LOAD_SECONDS").map_or(3, |text| text.parse().unwrap());
    let service = Service::start();
    let limit = Duration::from_secs(seconds);
    let resident = |pid: u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let picture = load::picture();
    load::load(service.address, 64, Duration::from_secs(1), &picture, true);
    let before = resident(service.child.id());
    let seen = load::load(service.address, 64, limit, &picture, true);
    let after = resident(service.child.id());
    assert!(seen.good.len() > 20 && seen.crashes > 0, "{} {}", seen.good.len(), seen.crashes);
    assert!(after < before + before / 2 + (8 << 10), "{before} kB, then {after} kB");
    assert!(service.stop().contains("all is answered"));
}

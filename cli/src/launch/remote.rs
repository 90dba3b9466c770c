//! Runs commands on hosts through the remote shell, with a limit.

use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::list::Host;

/// How many hosts are asked at once.
const MAX_AT_ONCE: usize = 64;

/// The most bytes of an answer that are kept.
const MAX_ANSWER: u64 = 64 << 10;

/// How a command on a host ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    /// The exit code; none after a signal, or the limit.
    pub(super) code: Option<i32>,
    pub(super) stdout: String,
    pub(super) stderr: String,
    /// Whether it was killed at the limit.
    pub(super) is_late: bool,
}

/// Returns the command that runs another on a host.
fn shell(rsh: Option<&str>, host: &str) -> Command {
    let mut words = rsh.unwrap_or("ssh").split_whitespace();
    let mut command = Command::new(words.next().unwrap_or("ssh"));
    command.args(words);
    if rsh.is_none() {
        // A question of ssh would wait forever for an answer.
        command.args(["-o", "BatchMode=yes", "-o", "ConnectTimeout=5"]);
    }
    command.arg(host);
    command
}

/// Runs a command line of the shell on a host, or here if `is_here`.
pub(super) fn ask(
    rsh: Option<&str>,
    host: &str,
    is_here: bool,
    line: &str,
    limit: Duration,
) -> Answer {
    let mut command = if is_here { Command::new("/bin/sh") } else { shell(rsh, host) };
    if is_here {
        command.arg("-c");
    }
    command.arg(line).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            let program = command.get_program().to_string_lossy().into_owned();
            let stderr = format!("failed to run {program}: {error}");
            return Answer { stderr, ..Answer::default() };
        }
    };
    let reader = |from: Option<Box<dyn Read + Send>>| {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(from) = from {
                let _ = from.take(MAX_ANSWER).read_to_end(&mut bytes); // what was read is the answer
            }
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let stdout = reader(child.stdout.take().map(|it| Box::new(it) as _));
    let stderr = reader(child.stderr.take().map(|it| Box::new(it) as _));
    let deadline = Instant::now() + limit;
    let mut answer = Answer::default();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => {
                answer.code = status.code();
                break;
            }
            Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
            Ok(None) | Err(_) => {
                answer.is_late = true;
                let _ = child.kill(); // it may just have ended
                let _ = child.wait();
                break;
            }
        }
    }
    if answer.is_late {
        // What it has started may hold its outputs open.
        return answer;
    }
    answer.stdout = stdout.join().unwrap_or_default();
    answer.stderr = stderr.join().unwrap_or_default();
    answer
}

/// Asks all hosts, some at once. Returns the answers in the order of the hosts.
pub(super) fn each<T: Send>(hosts: &[Host], ask: impl Fn(&Host) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let answers: Mutex<Vec<(usize, T)>> = Mutex::default();
    thread::scope(|scope| {
        for _ in 0..hosts.len().min(MAX_AT_ONCE) {
            scope.spawn(|| {
                while let Some((index, host)) = Some(next.fetch_add(1, Ordering::Relaxed))
                    .and_then(|it| Some((it, hosts.get(it)?)))
                {
                    let answer = ask(host);
                    answers.lock().unwrap_or_else(PoisonError::into_inner).push((index, answer));
                }
            });
        }
    });
    let mut answers = answers.into_inner().unwrap_or_else(PoisonError::into_inner);
    answers.sort_by_key(|(index, _)| *index);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

/// Returns the last line that is not empty.
pub(super) fn last_line(text: &str) -> Option<&str> {
    text.lines().map(str::trim).rfind(|line| !line.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_asked_through_the_remote_shell_and_not_for_ever() {
        let limit = Duration::from_secs(20);
        let answer = ask(Some("echo -n"), "n2", false, "hostname", limit);
        assert_eq!((answer.code, answer.stdout.as_str()), (Some(0), "n2 hostname"));
        let answer = ask(Some("sh -c"), "exit 7", false, "", limit);
        assert_eq!((answer.code, answer.is_late), (Some(7), false));
        let answer = ask(Some("/nowhere/rsh"), "n2", false, "", limit);
        assert!(answer.code.is_none() && answer.stderr.contains("/nowhere/rsh"), "{answer:?}");
        let answer = ask(None, "n2", true, "sleep 60", Duration::from_millis(50));
        assert!(answer.is_late, "{answer:?}");
    }

    #[test]
    fn answers_are_in_the_order_of_the_hosts() {
        let hosts: Vec<_> =
            (0..200).map(|it| Host { name: format!("n{it}"), workers: None }).collect();
        let names = each(&hosts, |host| host.name.clone());
        assert!(names.iter().zip(&hosts).all(|(name, host)| *name == host.name));
    }
}

//! A pool of Python's, driven over pipes. The interpreter is started once, and times each order by its own
//! clock.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};

use crate::measure::Outcome;
use crate::{peers, watchdog};

const SCRIPT: &str = include_str!("peers.py");

pub(crate) struct Python {
    child: Child,
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
    /// The version of Python.
    pub(crate) version: String,
}

impl Python {
    /// Returns none without a python3.
    pub(crate) fn start(kind: &str, workers: usize) -> Option<Self> {
        let mut child = Command::new("python3")
            .args(["-c", SCRIPT, kind, &workers.to_string()])
            // Its tracker of shared memory warns about memory that tasks have attached to.
            .env("PYTHONWARNINGS", "ignore")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0) // so that its workers can be ended with it
            .spawn()
            .ok()?;
        watchdog::end_with_us(child.id());
        let (to, from) = (child.stdin.take(), BufReader::new(child.stdout.take()?));
        let mut python = Self { child, to, from, version: String::new() };
        python.version = python.ask(&json!({"do": "version"})).ok()?["version"].as_str()?.into();
        Some(python)
    }

    /// Returns the seconds that Python takes for `what` with these arguments.
    pub(crate) fn seconds(&mut self, what: &str, arguments: Value) -> Outcome<f64> {
        let mut order = json!({"do": what});
        if let (Value::Object(order), Value::Object(arguments)) = (&mut order, arguments) {
            order.extend(arguments);
        }
        let answer = self.ask(&order)?;
        answer["seconds"].as_f64().ok_or_else(|| format!("Python answered {answer}").into())
    }

    fn ask(&mut self, order: &Value) -> Outcome<Value> {
        let to = self.to.as_mut().ok_or("closed")?;
        writeln!(to, "{order}")?;
        to.flush()?;
        let mut line = String::new();
        self.from.read_line(&mut line)?;
        Ok(serde_json::from_str(&line)?)
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        drop(self.to.take()); // Python exits at the end of its input
        let group = Pid::from_child(&self.child);
        peers::reap(&mut self.child);
        let _ = kill_process_group(group, Signal::KILL);
    }
}

//! Draws the progress of the run, a row per worker, and the last failures.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ratatui::backend::CrosstermBackend;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Borders, Gauge, Paragraph, Row, Sparkline, Table};
use ratatui::{Frame, Terminal};

use rustix::process::Signal;

use super::board::Board;
use super::keys::{self, Key};
use super::terminal;
use crate::control::Change;
use crate::os::observe::{self, Usage};
use crate::{color, format};
use procpool::{HostInfo, HostName, Pool, Stats, WorkerInfo, WorkerState};

/// The seconds of throughput that are shown.
const SECONDS: usize = 300;

/// A process, on its host if there are several.
type Process = (Option<HostName>, u32);

pub(super) struct View {
    board: Arc<Board>,
    pool: Pool,
    total: Option<u64>,
    began: Instant,
    /// The CPU time of each worker at the last sample, in milliseconds.
    cpu: HashMap<Process, u64>,
    /// This host, if the pool spans several.
    own: Option<HostName>,
    sampled: Instant,
    /// Finished jobs per second, the latest first; and the count before that second.
    rates: Vec<u64>,
    second: u64,
    before: u64,
    is_colored: bool,
    /// How often the screen had been entered at the last drawing.
    taken: usize,
    takes_keys: bool,
    /// The worker that keys are about: its slot, and its PID at the last drawing.
    selected: Option<(usize, u32)>,
    /// Whether its job's output is shown.
    is_open: bool,
    /// The slots and PIDs of the workers at the last drawing.
    listed: Vec<(usize, u32)>,
}

/// A worker, as shown.
struct Shown {
    worker: WorkerInfo,
    input: String,
    elapsed: Option<Duration>,
    /// The share of one CPU.
    cpu: f64,
    memory: u64,
}

/// The content of a drawing.
struct Picture {
    workers: Vec<Shown>,
    stats: Stats,
    hosts: Vec<HostInfo>,
    ended: u64,
    failed: u64,
    retried: u64,
    failures: Vec<String>,
    /// The output of the selected worker's job, if it is shown.
    output: Option<String>,
    said: Option<String>,
    is_paused: bool,
    elapsed: Duration,
}

impl View {
    pub(super) fn new(board: Arc<Board>, pool: Pool, total: Option<u64>, takes_keys: bool) -> Self {
        let now = Instant::now();
        let own = pool.hosts().first().map(|host| host.name);
        Self {
            board,
            own,
            pool,
            total,
            began: now,
            cpu: HashMap::new(),
            sampled: now,
            rates: vec![0],
            second: 0,
            before: 0,
            is_colored: color::wanted(&io::stderr()),
            taken: 0,
            takes_keys,
            selected: None,
            is_open: false,
            listed: Vec::new(),
        }
    }

    /// Handles a key. Returns the change of the run that it asks for.
    pub(super) fn press(&mut self, key: Key) -> Option<Change> {
        let at = self.selected.and_then(|(slot, _)| self.listed.iter().position(|it| it.0 == slot));
        match key {
            Key::More => return Some(Change::More),
            Key::Fewer => return Some(Change::Fewer),
            Key::Pause => return Some(Change::Pause),
            Key::End | Key::Kill => {
                let signal = if key == Key::End { Signal::TERM } else { Signal::KILL };
                return self.selected.map(|(_, pid)| Change::Signal { pid, signal });
            }
            Key::Up => self.select(at.map_or(0, |at| at.saturating_sub(1))),
            Key::Down => self.select(at.map_or(0, |at| at + 1)),
            Key::Open => {
                if self.selected.is_none() {
                    self.select(0);
                }
                self.is_open = true;
            }
            Key::Close if self.is_open => self.is_open = false,
            Key::Close => self.selected = None,
            Key::Redraw => {}
        }
        None
    }

    fn select(&mut self, at: usize) {
        self.selected = self.listed.get(at).or(self.listed.last()).copied();
    }

    pub(super) fn draw(&mut self, to: &mut Terminal<CrosstermBackend<File>>) -> io::Result<()> {
        let picture = self.sample();
        // The screen was left, for good or while the process is stopped.
        let Some(taken) = terminal::times_entered() else { return Ok(()) };
        if std::mem::replace(&mut self.taken, taken) != taken {
            terminal::begin_anew(to)?;
        }
        to.draw(|frame| self.paint(frame, &picture)).map(drop)
    }

    fn sample(&mut self) -> Picture {
        let now = Instant::now();
        let passed = now.duration_since(self.sampled).as_millis().max(1) as f64;
        self.sampled = now;
        let workers = self.pool.workers();
        let usages: Vec<_> = workers.iter().map(|worker| self.usage(worker)).collect();
        let mut cpu = HashMap::new();
        let state = self.board.state();
        let shown = workers.into_iter().zip(usages).map(|(worker, usage)| {
            let process = (worker.host, worker.pid);
            let before = self.cpu.get(&process).copied().unwrap_or(usage.cpu_millis);
            cpu.insert(process, usage.cpu_millis);
            let running = state.running(worker.slot).filter(|_| worker.state == WorkerState::Busy);
            Shown {
                elapsed: running.as_ref().map(|(_, since)| now.duration_since(*since)),
                input: running.map(|(input, _)| input).unwrap_or_default(),
                cpu: usage.cpu_millis.saturating_sub(before) as f64 / passed,
                memory: usage.memory,
                worker,
            }
        });
        let workers: Vec<_> = shown.collect();
        self.listed = workers.iter().map(|shown| (shown.worker.slot, shown.worker.pid)).collect();
        let slot = self.selected.map(|(slot, _)| slot);
        self.selected = self.listed.iter().find(|listed| Some(listed.0) == slot).copied();
        let opened = slot.filter(|_| self.is_open);
        let picture = Picture {
            workers,
            output: opened.map(|slot| String::from_utf8_lossy(&state.output(slot)).into_owned()),
            said: state.said.clone(),
            is_paused: state.is_paused,
            stats: self.pool.stats(),
            hosts: self.pool.hosts(),
            ended: state.ended,
            failed: state.failed,
            retried: state.retried,
            failures: state.failures.iter().cloned().collect(),
            elapsed: now.duration_since(self.began),
        };
        drop(state);
        self.cpu = cpu;
        let second = picture.elapsed.as_secs();
        if second > self.second {
            // A sample may be seconds late.
            let skipped = usize::try_from(second - self.second).unwrap_or(SECONDS).min(SECONDS);
            self.rates.splice(0..0, std::iter::repeat_n(0, skipped));
            self.rates.truncate(SECONDS);
            (self.second, self.before) = (second, picture.ended);
        }
        self.rates[0] = picture.ended - self.before.min(picture.ended);
        picture
    }

    /// Returns what a worker and its jobs use. What the jobs on other hosts use isn't known.
    fn usage(&self, worker: &WorkerInfo) -> Usage {
        if worker.host.is_none() || worker.host == self.own {
            return observe::family(worker.pid);
        }
        Usage {
            cpu_millis: worker.cpu.map_or(0, |cpu| cpu.as_millis() as u64),
            memory: worker.memory.unwrap_or(0),
        }
    }

    fn style(&self, color: Color) -> Style {
        if self.is_colored { Style::new().fg(color) } else { Style::new() }
    }

    fn paint(&self, frame: &mut Frame<'_>, picture: &Picture) {
        let failures = picture.failures.len() as u16;
        let keys = u16::from(self.takes_keys);
        let hosts = if picture.hosts.len() > 1 { 1 } else { 0 };
        let is_open = picture.output.is_some();
        let [head, hosts, rates, workers, output, below, keys] = Layout::vertical([
            Constraint::Length(2),
            Constraint::Length(hosts),
            Constraint::Length(4),
            Constraint::Min(3),
            Constraint::Fill(if is_open { 2 } else { 0 }),
            Constraint::Length(if failures > 0 && !is_open { failures + 1 } else { 0 }),
            Constraint::Length(keys),
        ])
        .areas(frame.area());
        self.paint_head(frame, head, picture);
        frame.render_widget(Paragraph::new(hosts_line(&picture.hosts)), hosts);
        let bars = Sparkline::default().data(&self.rates).style(self.style(Color::Green)).block(
            Block::new()
                .borders(Borders::TOP)
                .title(" ended in each second, the last at the left "),
        );
        frame.render_widget(bars, rates);
        frame.render_widget(self.table(picture), workers);
        let lines: Vec<_> =
            picture.failures.iter().rev().map(|it| Line::raw(it.as_str())).collect();
        let title = " the last failures ";
        let failures = Paragraph::new(lines)
            .style(self.style(Color::Red))
            .block(Block::new().borders(Borders::TOP).title(title));
        frame.render_widget(failures, below);
        if let Some(text) = &picture.output {
            self.paint_output(frame, output, text);
        }
        if self.takes_keys {
            let state = picture.is_paused.then_some("paused: p goes on");
            let said = state.or(picture.said.as_deref()).map(|said| format!("{said} · "));
            let line = said.unwrap_or_default() + keys::HELP;
            let style = Style::new().add_modifier(Modifier::DIM);
            frame.render_widget(Paragraph::new(line).style(style), keys);
        }
    }

    /// Shows the last lines of the selected job's output, long ones cut.
    fn paint_output(&self, frame: &mut Frame<'_>, area: Rect, text: &str) {
        let slot = self.selected.map_or(0, |(slot, _)| slot + 1);
        let most = usize::from(area.height.saturating_sub(1));
        let lines: Vec<_> = text.lines().collect();
        let last = &lines[lines.len().saturating_sub(most)..];
        let lines = last.iter().map(|line| Line::raw(format::one_line(line).into_owned()));
        let title = match text.is_empty() {
            true => format!(" worker {slot} has printed nothing yet "),
            false => format!(" the output of worker {slot}'s job "),
        };
        let block = Block::new().borders(Borders::TOP).title(title);
        frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()).block(block), area);
    }

    fn paint_head(&self, frame: &mut Frame<'_>, area: Rect, picture: &Picture) {
        let [line, gauge] =
            Layout::vertical([Constraint::Length(1), Constraint::Length(1)]).areas(area);
        let Picture { ended, failed, retried, stats, elapsed, .. } = picture;
        let rate = *ended as f64 / elapsed.as_secs_f64().max(1e-3);
        let left = self.total.map(|total| total.saturating_sub(*ended));
        let left = left.filter(|_| *ended > 0).map_or(String::new(), |left| {
            let time = Duration::try_from_secs_f64(left as f64 / rate).unwrap_or(Duration::MAX);
            format!(" · {} left", format::duration(time))
        });
        let text = format!(
            "procpool · {} · {} ended, {} failed, {} retried · {} running · {} workers lost · {}/s{left}",
            format::duration(*elapsed),
            format::grouped(*ended),
            format::grouped(*failed),
            format::grouped(*retried),
            format::grouped(stats.running),
            format::grouped(stats.restarts),
            format::rate(rate),
        );
        frame.render_widget(Paragraph::new(text), line);
        if let Some(total) = self.total.filter(|total| *total > 0) {
            let ratio = (*ended as f64 / total as f64).clamp(0.0, 1.0);
            let label = format!("{}/{}", format::grouped(*ended), format::grouped(total));
            let bar =
                Gauge::default().ratio(ratio).label(label).gauge_style(self.style(Color::Green));
            frame.render_widget(bar, gauge);
        }
    }

    fn table(&self, picture: &Picture) -> Table<'static> {
        let hosts = picture.workers.iter().filter_map(|shown| shown.worker.host);
        let host_width = hosts.map(|host| host.chars().count()).max();
        let host_width = host_width.map(|width| width.clamp(4, 24) as u16);
        let rows = picture.workers.iter().map(|shown| {
            let worker = &shown.worker;
            let is_lost = |host: &HostInfo| Some(host.name) == worker.host && host.lost.is_some();
            let (state, color) = match worker.state {
                _ if picture.hosts.iter().any(is_lost) => ("lost", Color::Red),
                WorkerState::Busy => ("busy", Color::Green),
                WorkerState::Idle => ("idle", Color::Blue),
                WorkerState::Starting => ("starting", Color::Yellow),
                WorkerState::Absent => ("absent", Color::Red),
                _ => ("unknown", Color::Red),
            };
            let host = host_width.map(|_| {
                worker.host.as_ref().map_or(String::new(), |host| host.as_str().to_owned())
            });
            let cells = [
                worker.pid.to_string(),
                state.to_owned(),
                shown.elapsed.map_or(String::new(), format::duration),
                format!("{:.0}%", shown.cpu * 100.0),
                format::bytes(shown.memory),
                format::grouped(worker.tasks_done),
                shown.input.clone(),
            ];
            let number = (worker.slot + 1).to_string();
            let is_selected = self.selected.is_some_and(|(slot, _)| slot == worker.slot);
            let style = match is_selected {
                true => self.style(color).add_modifier(Modifier::REVERSED),
                false => self.style(color),
            };
            Row::new([number].into_iter().chain(host).chain(cells)).style(style)
        });
        let widths = [8, 9, 9, 6, 10, 11].into_iter();
        let widths = [6].into_iter().chain(host_width).chain(widths).map(Constraint::Length);
        let widths = widths.chain([Constraint::Min(10)]);
        let names = ["pid", "state", "elapsed", "cpu", "memory", "ended", "input"];
        let names = ["worker"].into_iter().chain(host_width.map(|_| "host")).chain(names);
        Table::new(rows, widths)
            .header(Row::new(names).style(Style::new().add_modifier(Modifier::BOLD)))
            .block(Block::new().borders(Borders::TOP))
    }
}

/// Formats the hosts of the pool.
fn hosts_line(hosts: &[HostInfo]) -> String {
    let each = hosts.iter().map(|host| match &host.lost {
        None => format!("{} {} workers", host.name, host.slots.len()),
        Some(reason) => format!("{} lost: {}", host.name, format::one_line(reason)),
    });
    format!("hosts · {}", each.collect::<Vec<_>>().join(" · "))
}

//! Runs other programs in a worker, and reports how each ended and what it used.
//!
//! A program stays in the worker's process group, so that it dies with the parent like the worker
//! does (`liveness` in `procpool-worker`). The worker is the subreaper of its descendants: leftover
//! processes become its children, even those in a session or process group of their own, and are
//! killed before the next program starts.

use std::collections::HashSet;
use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, getpid, kill_process, pidfd_open, pidfd_send_signal,
};

use super::observe;
use super::terminal::FROM_KEYS;
use crate::tasks::Strings;

/// A program that was started and not waited for.
#[derive(Debug)]
pub(crate) struct Program {
    pid: Pid,
}

/// How a program ended, and what it used.
#[derive(Debug)]
pub(crate) struct ProgramExit {
    pub(crate) status: ExitStatus,
    /// CPU time of the program, and of the children that it waited for.
    pub(crate) cpu: Duration,
    /// Peak resident memory in bytes of the largest of these. The kernel counts from before the
    /// program was loaded, so it is never less than the worker's own.
    pub(crate) memory: u64,
}

/// Makes this process the subreaper of its descendants.
pub(crate) fn adopt_orphans() -> io::Result<()> {
    Ok(rustix::process::set_child_subreaper(Some(getpid()))?)
}

/// Sets the close-on-exec flag of all descriptors from 3 on.
fn close_all_on_exec() -> io::Result<()> {
    let flag = libc::CLOSE_RANGE_CLOEXEC as libc::c_int;
    // SAFETY: it changes a flag of descriptors, and none of them is closed.
    if unsafe { libc::close_range(3, libc::c_uint::MAX, flag) } == 0 {
        return Ok(());
    }
    // Linux before 5.11 has no such flag, and a seccomp filter may refuse the call.
    close_each_on_exec()
}

/// Sets the flag on one descriptor after another.
fn close_each_on_exec() -> io::Result<()> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        let Some(fd) = name.to_str().and_then(|name| name.parse::<libc::c_int>().ok()) else {
            continue;
        };
        // SAFETY: as above. One that another thread has closed meanwhile needs no flag.
        let set = fd < 3 || unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } != -1;
        let error = io::Error::last_os_error();
        if !set && error.raw_os_error() != Some(libc::EBADF) {
            return Err(io::Error::new(error.kind(), format!("fcntl (F_SETFD): {error}")));
        }
    }
    Ok(())
}

/// Resets SIGCHLD to its default. If it were inherited as ignored, no exit status could be read.
pub(crate) fn default_child_signal() {
    // SAFETY: a plain system call; no handler is installed.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// Detects that a program in this process group wants the terminal. The kernel stops what reads or
/// configures a terminal in the background, by a signal to the whole group.
#[derive(Debug)]
pub(crate) struct TerminalWatch(File);

impl TerminalWatch {
    /// Blocks the signals in this thread, which must be the only one. They then stop its programs
    /// but not this process, which may write to a terminal too.
    pub(crate) fn start() -> io::Result<Self> {
        let mut signals = MaybeUninit::uninit();
        // SAFETY: plain system calls on local data, which the first one initialises; the descriptor
        // that comes back belongs to nothing else.
        unsafe {
            libc::sigemptyset(signals.as_mut_ptr());
            let mut signals = signals.assume_init();
            for signal in TERMINAL_SIGNALS {
                libc::sigaddset(&mut signals, signal);
            }
            checked(libc::pthread_sigmask(libc::SIG_BLOCK, &signals, std::ptr::null_mut()))?;
            let fd = libc::signalfd(-1, &signals, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
            if fd == -1 {
                return Err(io::Error::last_os_error());
            }
            Ok(Self(OwnedFd::from_raw_fd(fd).into()))
        }
    }

    /// Clears the detection. Returns whether there was one.
    pub(crate) fn clear(&mut self) -> bool {
        let mut signals = [0; 2 * size_of::<libc::signalfd_siginfo>()];
        let mut any = false;
        while self.0.read(&mut signals).is_ok_and(|read| read > 0) {
            any = true;
        }
        any
    }
}

impl AsFd for TerminalWatch {
    /// Becomes readable when the terminal was wanted.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The signals to background processes that read or configure a terminal.
const TERMINAL_SIGNALS: [libc::c_int; 2] = [libc::SIGTTIN, libc::SIGTTOU];

/// The signals that are reset to their defaults in a program. The first two real-time signals
/// belong to the C library: `posix_spawn` makes a program ignore them unless they are named here,
/// and `sigaddset` refuses to name them. The signals of keys are reset for a program that has the
/// terminal.
fn defaulted(has_terminal: bool) -> libc::sigset_t {
    let signals = [libc::SIGPIPE, libc::SIGCHLD, libc::SIGTTIN, libc::SIGTTOU, 32, 33];
    let from_keys = FROM_KEYS.into_iter().filter(|_| has_terminal);
    let bits = signals.into_iter().chain(from_keys);
    let bits = bits.fold(0u64, |bits, signal| bits | 1 << (signal - 1));
    let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: on Linux, a set is a bit for each signal from 1, in at least 64 bits, and all bits but
    // those of its signals are zero.
    unsafe {
        set.as_mut_ptr().cast::<[u8; 8]>().write(bits.to_ne_bytes());
        set.assume_init()
    }
}

/// The parameters of `posix_spawn`.
struct Spawn {
    attributes: libc::posix_spawnattr_t,
    actions: libc::posix_spawn_file_actions_t,
}

impl Spawn {
    /// Sets the program's standard input, output and error, and default signals.
    fn new(streams: [Option<BorrowedFd<'_>>; 3], has_terminal: bool) -> io::Result<Self> {
        let mut spawn = Self::empty()?;
        for (stream, target) in streams.into_iter().zip(0..) {
            let Some(stream) = stream else { continue };
            // SAFETY: the actions were initialised; the descriptor is only used by the call that
            // starts the program.
            checked(unsafe {
                libc::posix_spawn_file_actions_adddup2(
                    &mut spawn.actions,
                    stream.as_raw_fd(),
                    target,
                )
            })?;
        }
        let flags = libc::POSIX_SPAWN_SETSIGDEF | libc::POSIX_SPAWN_SETSIGMASK;
        // SAFETY: the attributes were initialised, and all else is local data.
        unsafe {
            let mut mask = MaybeUninit::zeroed();
            checked(libc::pthread_sigmask(0, std::ptr::null(), mask.as_mut_ptr()))?;
            let mut mask = mask.assume_init();
            for signal in TERMINAL_SIGNALS {
                libc::sigdelset(&mut mask, signal);
            }
            checked(libc::posix_spawnattr_setsigmask(&mut spawn.attributes, &mask))?;
            let defaults = defaulted(has_terminal);
            checked(libc::posix_spawnattr_setsigdefault(&mut spawn.attributes, &defaults))?;
            checked(libc::posix_spawnattr_setflags(&mut spawn.attributes, flags as libc::c_short))?;
        }
        Ok(spawn)
    }

    fn empty() -> io::Result<Self> {
        let mut attributes = MaybeUninit::uninit();
        let mut actions = MaybeUninit::uninit();
        // SAFETY: each is initialised by its call, and used only where that has succeeded.
        unsafe {
            checked(libc::posix_spawnattr_init(attributes.as_mut_ptr()))?;
            if let Err(error) = checked(libc::posix_spawn_file_actions_init(actions.as_mut_ptr())) {
                libc::posix_spawnattr_destroy(attributes.as_mut_ptr());
                return Err(error);
            }
            Ok(Self { attributes: attributes.assume_init(), actions: actions.assume_init() })
        }
    }
}

impl Drop for Spawn {
    fn drop(&mut self) {
        // SAFETY: both were initialised, and are used no more.
        unsafe {
            libc::posix_spawnattr_destroy(&mut self.attributes);
            libc::posix_spawn_file_actions_destroy(&mut self.actions);
        }
    }
}

/// Converts an error number that a function of the C library returned.
fn checked(code: libc::c_int) -> io::Result<()> {
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code)) }
}

unsafe extern "C" {
    /// The environment, which programs inherit.
    static environ: *const *mut libc::c_char;
}

/// Returns the environment with this variable in place of one with its name, and a null at its end.
fn environment_with(variable: &CStr) -> Vec<*mut libc::c_char> {
    let name = variable.to_bytes().split_inclusive(|byte| *byte == b'=').next().unwrap_or_default();
    let mut environment = vec![variable.as_ptr().cast_mut()];
    // SAFETY: a list of pointers to strings that ends with a null. Nothing in a worker changes the
    // environment while a job is started.
    unsafe {
        let mut at = environ;
        while !at.is_null() && !(*at).is_null() {
            if !CStr::from_ptr(*at).to_bytes().starts_with(name) {
                environment.push(*at);
            }
            at = at.add(1);
        }
    }
    environment.push(std::ptr::null_mut());
    environment
}

/// The words of a command line as the C library takes them.
struct Arguments {
    /// Each with a NUL at its end. Read through the pointers.
    _text: Vec<u8>,
    /// To each in the text, and a null.
    pointers: Vec<*mut libc::c_char>,
}

impl Arguments {
    fn new(words: &Strings) -> io::Result<Self> {
        let mut starts = Vec::with_capacity(words.len());
        let mut text = Vec::new();
        for word in words.iter() {
            if word.contains(&0) {
                return Err(io::Error::new(
                    ErrorKind::InvalidInput,
                    "an argument contains a NUL byte",
                ));
            }
            starts.push(text.len());
            text.extend_from_slice(word);
            text.push(0);
        }
        // Nothing is appended any more, so the text stays where it is.
        let pointers = starts.into_iter().map(|start| text[start..].as_ptr().cast_mut().cast());
        let pointers = pointers.chain([std::ptr::null_mut()]).collect();
        Ok(Self { _text: text, pointers })
    }
}

impl Program {
    /// Starts a file, or what `PATH` has under that name, with these arguments, the first of which
    /// is its name. Standard input is that of this process, and so are outputs that are not given.
    /// `variable` is added to the environment, in the form `NAME=VALUE`, in place of one with its
    /// name. Keys interrupt a program that has the terminal.
    pub(crate) fn start(
        file: &OsStr,
        words: &Strings,
        variable: &CStr,
        streams: [Option<BorrowedFd<'_>>; 3],
        has_terminal: bool,
    ) -> io::Result<Self> {
        // Not every descriptor of this process is close-on-exec by itself. A program that inherited
        // the worker's channel would keep it open.
        close_all_on_exec()?;
        let file = CString::new(file.as_bytes())?;
        let words = Arguments::new(words)?;
        let environment = environment_with(variable);
        let spawn = Spawn::new(streams, has_terminal)?;
        let mut pid = 0;
        // `posix_spawn`, whose cost does not grow with memory. Not the standard library, which
        // cannot configure all signals.
        // SAFETY: all pointers are to what lives until the call returns, and the words end with a
        // null. Nothing in a worker changes the environment while a job is started.
        checked(unsafe {
            libc::posix_spawnp(
                &mut pid,
                file.as_ptr(),
                &spawn.actions,
                &spawn.attributes,
                words.pointers.as_ptr(),
                environment.as_ptr(),
            )
        })?;
        let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { pid })
    }

    /// Returns a descriptor that becomes readable when the program has ended.
    pub(crate) fn pidfd(&self) -> io::Result<OwnedFd> {
        Ok(pidfd_open(self.pid, PidfdFlags::empty())?)
    }

    /// Waits for the program to end.
    pub(crate) fn wait(self) -> io::Result<ProgramExit> {
        loop {
            match collect(self.pid.as_raw_pid(), 0) {
                Ok(Some(ended)) => return Ok(ended),
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Waits for a child of this process, or any (-1). Nothing else waits for them.
fn collect(pid: i32, flags: i32) -> io::Result<Option<ProgramExit>> {
    let mut status = 0;
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: writes to locals.
    match unsafe { libc::wait4(pid, &mut status, flags, usage.as_mut_ptr()) } {
        -1 => return Err(io::Error::last_os_error()),
        0 => return Ok(None),
        _ => {}
    }
    // SAFETY: any bytes are one, and the kernel has filled it in.
    let usage = unsafe { usage.assume_init() };
    let time = |time: libc::timeval| {
        Duration::from_micros((time.tv_sec * 1_000_000 + time.tv_usec).cast_unsigned())
    };
    Ok(Some(ProgramExit {
        status: ExitStatus::from_raw(status),
        cpu: time(usage.ru_utime) + time(usage.ru_stime),
        memory: usage.ru_maxrss.cast_unsigned() * 1024,
    }))
}

/// Blocks until a file is readable or its other end is closed, or until the timeout. Returns which
/// are.
pub(crate) fn poll_readable<const N: usize>(
    files: [Option<BorrowedFd<'_>>; N],
    limit: Option<Duration>,
) -> [bool; N] {
    let limit = limit.map(|limit| Timespec {
        tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: limit.subsec_nanos().into(),
    });
    let mut polled: Vec<_> =
        files.iter().flatten().map(|file| PollFd::from_borrowed_fd(*file, PollFlags::IN)).collect();
    if poll(&mut polled, limit.as_ref()).is_err() {
        return [false; N];
    }
    let mut polled = polled.iter();
    files.map(|file| {
        file.is_some() && polled.next().is_some_and(|polled| !polled.revents().is_empty())
    })
}

/// Whether the reader of this process's standard output is gone.
pub(crate) fn stdout_is_closed() -> bool {
    let stdout = io::stdout();
    let mut polled = [PollFd::new(&stdout, PollFlags::OUT)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut polled, Some(&now)).is_ok() && polled[0].revents().contains(PollFlags::ERR)
}

/// Sends a signal to all descendants of this process.
pub(crate) fn signal_descendants(signal: Signal) {
    signal_descendants_of(std::process::id(), signal, &mut HashSet::new());
}

/// Sends a signal to all descendants of a process that are not in `known`.
pub(crate) fn signal_descendants_of(process: u32, signal: Signal, known: &mut HashSet<u32>) {
    for pid in observe::descendants(process) {
        if known.insert(pid) {
            signal_descendant(process, pid, signal);
        }
    }
}

/// Sends a signal to a process, if it still descends from the other: one that has ended since may have given its number
/// to a stranger.
fn signal_descendant(ancestor: u32, pid: u32, signal: Signal) {
    let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
    match pidfd_open(number, PidfdFlags::empty()) {
        // What the descriptor refers to keeps its number until it has been waited for.
        Ok(process) if observe::descends(pid, ancestor) => {
            let _ = pidfd_send_signal(process, signal);
        }
        Ok(_) | Err(Errno::SRCH) => {}
        // This process may open no more files.
        Err(_) => {
            signal_one(pid, signal);
        }
    }
}

fn signal_one(pid: u32, signal: Signal) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.is_some_and(|pid| kill_process(pid, signal).is_ok())
}

/// Kills all leftover processes of a program, waits a second for them at most, and adds their resource use. The
/// program itself has been waited for.
pub(crate) fn kill_orphans(ended: &mut ProgramExit) {
    /// How long killed processes are waited for.
    const PATIENCE: Duration = Duration::from_secs(1);
    const LONGEST_PAUSE: Duration = Duration::from_millis(10);
    let begun = Instant::now();
    let mut pause = Duration::from_micros(100);
    loop {
        match collect(-1, libc::WNOHANG) {
            Ok(Some(left)) => {
                ended.cpu += left.cpu;
                ended.memory = ended.memory.max(left.memory);
            }
            Ok(None) => {
                // The children of each killed process become children of this one, for the next
                // round.
                let left = observe::children(std::process::id());
                let killed = left.into_iter().filter(|pid| signal_one(*pid, Signal::KILL)).count();
                if killed == 0 {
                    // A process that has changed its user, which cannot be killed.
                    return;
                }
                // One in an uninterruptible wait, as for a server of files that is gone, ends when that does.
                if begun.elapsed() > PATIENCE {
                    return;
                }
                std::thread::sleep(pause);
                pause = (2 * pause).min(LONGEST_PAUSE);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Nothing is left.
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn no_descriptor_is_passed_on_also_where_close_range_has_no_such_flag() {
        let file = std::fs::File::open("/dev/null").unwrap();
        // SAFETY: plain system calls on a descriptor that is open.
        let flags = unsafe {
            assert_eq!(libc::fcntl(file.as_raw_fd(), libc::F_SETFD, 0), 0);
            close_each_on_exec().unwrap();
            libc::fcntl(file.as_raw_fd(), libc::F_GETFD)
        };
        assert_eq!(flags, libc::FD_CLOEXEC);
    }
}

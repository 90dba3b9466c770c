//! The template process: runs the pool's preload function once, and forks a worker on request.
//!
//! A worker that is forked has what the preload function has built, shared copy-on-write, and skips exec, the
//! dynamic linker and the program's start. Forking is safe because this process has one thread.
//!
//! The fork is a raw `clone3` with `CLONE_PARENT`: the worker is a child of the pool's process, as one that
//! was executed is, and so are its exit status, its pidfd and its parent-death signal. The C library does not
//! take part. What `fork` would do for it is done here: its cached thread id is updated by the kernel
//! (`CLONE_CHILD_SETTID`, at the address that `PR_GET_TID_ADDRESS` returns), so that `abort` and `raise` reach
//! the right thread, and the list of robust mutexes is registered again. Handlers of `pthread_atfork` do not
//! run. In a process of one thread no lock is held, and this crate's own caches of the PID are on a page that
//! the kernel clears.
//!
//! A worker stays in this process's group until the supervisor has learned its PID and moved it. So a worker
//! that the supervisor never learned of ends with the template's group.
//!
//! Nothing here touches ipc-channel, whose statics remember the PID.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::{huge_pages, liveness, oom, serve, setup};
use crate::run::{fork_guard, panics, trampoline};
use crate::shm::region::Region;
use crate::shm::sys;
use crate::wire::attach::{self, Received};
use crate::wire::codec;
use crate::wire::control::{Control, Packet};
use crate::wire::error::TransportError;
use crate::wire::function::{ImageId, PreloadRef};
use crate::wire::passed::PassedFd;
use crate::wire::protocol::{Handshake, SpawnToken, VERSION};
use crate::wire::template::{TemplateReply, TemplateRequest};

thread_local! {
    /// The socket, while the preload function runs.
    static PRELOADING: std::cell::RefCell<Option<Rc<Control>>> = const { std::cell::RefCell::new(None) };
}

/// The template between requests.
struct Template {
    control: Rc<Control>,
    /// Closed in each worker, which has a pipe of its own.
    _liveness: OwnedFd,
    /// Files that were passed for the preload function's argument.
    attached: Vec<(attach::FileId, PassedFd)>,
}

/// What a forked worker needs.
struct Fork {
    nonce: u64,
    title: String,
    env: Vec<(Vec<u8>, Vec<u8>)>,
    control: OwnedFd,
    capture: Option<OwnedFd>,
}

/// Serves as the template that `token` describes, and as a worker in each forked copy. Ends the process.
///
/// # Safety
///
/// As [`serve::run`].
pub unsafe fn run(token: SpawnToken) -> ! {
    let outcome = start(token).and_then(Template::serve);
    let parent = token.parent;
    match outcome {
        Ok(fork) => {
            let nonce = fork.nonce;
            let control = become_worker(parent, fork).map_err(TransportError::from);
            serve::finish(control.and_then(|control| serve::connect(Control::new(control, nonce))))
        }
        // The parent needs it no longer.
        Err(TransportError::PeerGone) => std::process::exit(0),
        Err(error) => {
            eprintln!("procpool template {}: {error}", std::process::id());
            std::process::exit(serve::EX_SOFTWARE)
        }
    }
}

/// Sets up the process and sends the handshake.
fn start(token: SpawnToken) -> Result<Template, TransportError> {
    setup::prepare(token.parent)?;
    let control = Control::new(setup::take_control_socket(token.parent)?, token.nonce);
    let first = control.recv(false)?;
    let mut passed = first.descriptors.into_iter().map(|fd| sys::move_high(fd.into()));
    let missing = || TransportError::Malformed("no liveness pipe was passed".to_owned());
    let liveness = passed.next().ok_or_else(missing)?;
    setup::raise_oom_score();
    setup::find_title();
    let (version, identity, pid) = (VERSION, ImageId::own(), std::process::id());
    reply(&control, &TemplateReply::Handshake(Handshake { version, identity, pid }))?;
    let control = Rc::new(control);
    Ok(Template { control, _liveness: liveness, attached: Vec::new() })
}

fn reply(control: &Control, reply: &TemplateReply) -> Result<(), TransportError> {
    let packet = codec::encode_to_vec(reply)
        .map_err(|error| TransportError::Malformed(error.to_string()))?;
    control.send(&packet, &[])
}

impl Template {
    /// Handles requests until the parent closes the socket. Returns only in a forked worker.
    fn serve(mut self) -> Result<Fork, TransportError> {
        loop {
            let Packet { bytes, descriptors, is_cut } = self.control.recv(true)?;
            if is_cut {
                return Err(io::Error::from_raw_os_error(libc::EMFILE).into());
            }
            let malformed = |what: String| TransportError::Malformed(what);
            let request = codec::decode(&bytes).map_err(|error| malformed(error.to_string()))?;
            match request {
                TemplateRequest::Attached(files) => {
                    let descriptors =
                        descriptors.into_iter().map(|fd| sys::move_high(fd.into()).into());
                    self.attached.extend(files.into_iter().zip(descriptors));
                }
                TemplateRequest::Preload { call, len } => {
                    let region =
                        descriptors.into_iter().next().map(|file| Region::open(file.into(), len));
                    let region = region.transpose()?;
                    let begun = Instant::now();
                    let loaded =
                        self.preload(call, region.as_ref(), len).and_then(|()| count_threads());
                    if call.is_some() && loaded.is_ok() {
                        huge_pages::collapse(begun.elapsed());
                    }
                    oom::prepare();
                    // What is buffered would be written once more by each worker.
                    let _ = io::stdout().flush();
                    sys::flush_c_streams();
                    reply(&self.control, &TemplateReply::Preloaded(loaded))?;
                }
                TemplateRequest::Fork { nonce, title, env } => {
                    let mut descriptors = descriptors.into_iter().map(OwnedFd::from);
                    let control = descriptors.next();
                    let control =
                        control.ok_or_else(|| malformed("no socket was passed".to_owned()))?;
                    let fork = Fork { nonce, title, env, control, capture: descriptors.next() };
                    let pid = match clone_process() {
                        Ok(None) => return Ok(fork),
                        Ok(Some(pid)) => Ok(pid),
                        Err(error) => Err(error.raw_os_error().unwrap_or(libc::EIO)),
                    };
                    reply(&self.control, &TemplateReply::Forked { nonce, pid })?;
                }
            }
        }
    }

    /// Runs the preload function. Returns why it failed.
    fn preload(
        &mut self,
        call: Option<PreloadRef>,
        argument: Option<&Region>,
        len: u64,
    ) -> Result<(), String> {
        let Some(call) = call else { return Ok(()) };
        let (function, trampoline) =
            trampoline::resolve_preload(call).map_err(|error| error.to_string())?;
        // SAFETY: the region has `len` bytes, and the parent does not write to it any more.
        let argument = argument.map_or(&[][..], |region| unsafe {
            std::slice::from_raw_parts(region.as_ptr(), usize::try_from(len).unwrap_or(0))
        });
        panics::install(|report| {
            if let Some(control) = PRELOADING.take() {
                let failed = Err(report.prefixed("it"));
                let _ = reply(&control, &TemplateReply::Preloaded(failed));
            }
        });
        PRELOADING.set(Some(Rc::clone(&self.control)));
        Received::new(std::mem::take(&mut self.attached)).register();
        // SAFETY: `resolve_preload` returns the pair that `PreloadRef::new` was called with in the parent.
        let run = AssertUnwindSafe(|| unsafe { trampoline(function, argument) });
        let outcome = catch_unwind(run);
        attach::clear_received();
        PRELOADING.set(None);
        match outcome {
            Ok(outcome) => outcome.map_err(|error| error.to_string()),
            Err(payload) => Err(panics::take_report(&*payload).prefixed("it")),
        }
    }
}

/// Refuses a process with more than one thread.
fn count_threads() -> Result<(), String> {
    /// A thread that was joined may be listed for a moment.
    const PATIENCE: Duration = Duration::from_millis(200);
    let begun = Instant::now();
    loop {
        let others = setup::other_threads().map_err(|error| {
            format!("the threads of its process can't be counted, which a fork would leave out: {error}; mount /proc, or use StartMethod::Spawn")
        })?;
        if others.is_empty() {
            return Ok(());
        }
        if begun.elapsed() > PATIENCE {
            return Err(format!(
                "threads are running in its process, which can't be forked then ({}): end them before the preload function returns, or start them in an initializer; and call `procpool::init()` first in main",
                others.join(", ")
            ));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The operation of prctl(2) that returns where the C library keeps a thread's id. libc does not define it.
const PR_GET_TID_ADDRESS: libc::c_int = 40;

/// The arguments of clone3(2), as of Linux 5.3.
#[repr(C)]
struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
}

/// Forks this process, as a child of this process's parent. Returns the PID, and `None` in the copy.
///
/// # Errors
///
/// When the system refuses, or the kernel lacks `PR_GET_TID_ADDRESS` (`CONFIG_CHECKPOINT_RESTORE`).
fn clone_process() -> io::Result<Option<u32>> {
    let mut tid: *mut libc::pid_t = std::ptr::null_mut();
    let (mut robust, mut robust_len): (usize, usize) = (0, 0);
    // SAFETY: plain system calls that write to locals. The process has one thread, so the copy, which
    // continues on a copy of this stack, has all of the program's state. `tid` is the address at which the C
    // library keeps this thread's id, which the kernel overwrites in the copy.
    unsafe {
        if libc::prctl(PR_GET_TID_ADDRESS, &raw mut tid) != 0 {
            return Err(io::Error::last_os_error());
        }
        libc::syscall(libc::SYS_get_robust_list, 0, &raw mut robust, &raw mut robust_len);
        let flags = libc::CLONE_PARENT | libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID;
        let arguments = CloneArguments {
            flags: flags as u64,
            pidfd: 0,
            child_tid: tid as u64,
            parent_tid: 0,
            // That of this process, with `CLONE_PARENT`.
            exit_signal: 0,
            stack: 0,
            stack_size: 0,
            tls: 0,
        };
        let size = size_of::<CloneArguments>();
        match libc::syscall(libc::SYS_clone3, &raw const arguments, size) {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                libc::syscall(libc::SYS_set_robust_list, robust, robust_len);
                Ok(None)
            }
            pid => Ok(Some(pid as u32)),
        }
    }
}

/// Makes a forked copy a worker. Returns its control socket.
fn become_worker(parent: u32, fork: Fork) -> io::Result<OwnedFd> {
    fork_guard::set_worker_pid();
    liveness::watch(parent)?;
    let Fork { title, env, control, capture, .. } = fork;
    setup::set_title(&title);
    for (name, value) in env {
        // SAFETY: this process has one thread.
        unsafe { std::env::set_var(OsString::from_vec(name), OsString::from_vec(value)) };
    }
    if let Some(capture) = capture {
        rustix::stdio::dup2_stdout(&capture)?;
        rustix::stdio::dup2_stderr(&capture)?;
    }
    Ok(sys::move_high(control))
}

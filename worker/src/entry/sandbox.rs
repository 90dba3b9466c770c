//! Confines this process to what its pool allows, by means that need no privilege: Landlock for files, TCP ports and
//! signals, and seccomp filters for system calls. A process can't undo either, and passes both on to its programs.
//!
//! - **Landlock** denies every access to the file system that is not named, except what it does not know: metadata
//!   (`stat`), and the changes of attributes that the filter refuses.
//! - **The filter** allows a list of system calls. Of those that programs try in good faith (a socket, a process, an
//!   attribute of a file), some fail with an error, as where the user lacks the right. All others end the process: SIGSYS,
//!   whose handler records the call's number in the lane.
//!
//! Both are for the calling thread, and for those that it starts later. So other threads are refused here.

mod calls;
mod table;

use std::collections::BTreeMap;
use std::ffi::{OsString, c_int, c_void};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::OnceLock;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, PathBeneath,
    PathFd, Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, Scope,
};
use rustix::thread::CapabilitySet;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use self::calls::{
    ALLOWED, ALLOWED_HERE, FCNTL_REFUSED, IOCTL_ALLOWED, LISTENING, PRCTL_ALLOWED,
    PRCTL_OF_PROCESSES, PROCESSES, PROCESSES_HERE, REFUSED, REFUSED_HERE, SOCKETS, UNKNOWN,
};
use self::table::Answer;
use super::setup::other_threads;
use crate::run::fork_guard;
use crate::shm::lane::{AbortReason, Words};
use crate::wire::confinement::{Confinement, Network};

/// The newest version of Landlock whose rights are used.
const NEWEST: ABI = ABI::V7;

/// The lane that [`on_refusal`] writes to.
static LANE: OnceLock<&'static Words> = OnceLock::new();

/// Checks that this machine can confine a worker so.
///
/// # Errors
///
/// What the kernel lacks, and a path that can't be opened.
pub fn check(to: &Confinement) -> Result<(), String> {
    rules(to)?;
    let trap = libc::SECCOMP_RET_TRAP;
    // SAFETY: a plain system call that reads a local.
    let known =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &trap) };
    if known != 0 && !to.best_effort {
        let error = std::io::Error::last_os_error();
        return Err(format!("this kernel has no seccomp filters, or refuses them: {error}"));
    }
    Ok(())
}

/// Confines this process.
///
/// # Errors
///
/// What the kernel lacks or refuses, and a path that can't be opened. The process may be confined in part then.
pub(super) fn confine(to: &Confinement, lane: &'static Words) -> Result<(), String> {
    let others = other_threads().map_err(|error| {
        format!("the threads of the worker can't be counted, which a sandbox might not reach: {error}; mount /proc")
    })?;
    if !others.is_empty() {
        return Err(format!(
            "threads are running in the worker that a sandbox would not reach ({}): confine the worker before its initializer, start no threads before `procpool::init()`, and call that first in main",
            others.join(", ")
        ));
    }
    let _ = LANE.set(lane);
    install_handler();
    let refused = |what: &'static str| move |error: rustix::io::Errno| format!("{what}: {error}");
    rustix::thread::set_no_new_privs(true).map_err(refused("prctl (PR_SET_NO_NEW_PRIVS)"))?;
    let none = rustix::thread::CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, none).map_err(refused("capset"))?;
    for stream in [libc::STDOUT_FILENO, libc::STDERR_FILENO] {
        if let Err(error) = write_only(stream)
            && !to.best_effort
        {
            return Err(format!(
                "the terminal that its output goes to can't be opened anew without its input: {error}; where it belongs to another user, pipe the output (| cat), or capture it"
            ));
        }
    }
    rules(to)?.restrict_self().map_err(|error| lacking(&error))?;
    let applied = filter(to).and_then(|filter| {
        seccompiler::apply_filter(&filter).map_err(|error| {
            format!("this kernel has no seccomp filters, or refuses them: {error}")
        })
    });
    if to.best_effort { Ok(()) } else { applied }
}

/// Opens a terminal anew, only to write to it: it is open for both, and what the user types could be read from it.
fn write_only(stream: c_int) -> std::io::Result<()> {
    // SAFETY: plain system calls, on a descriptor that stays open.
    if unsafe { libc::isatty(stream) } == 0 {
        return Ok(());
    }
    let terminal = std::fs::File::options()
        .write(true)
        .custom_flags(libc::O_NOCTTY)
        .open(format!("/proc/self/fd/{stream}"))?;
    // SAFETY: as above.
    match unsafe { libc::dup2(terminal.as_raw_fd(), stream) } {
        -1 => Err(std::io::Error::last_os_error()),
        _ => Ok(()),
    }
}

// ── Landlock ──

/// Returns the error of what Landlock lacks.
fn lacking(error: &dyn std::fmt::Display) -> String {
    format!(
        "Landlock of this kernel can't do it: {error} (Linux 6.2 has what a sandbox needs, 6.7 for ports, 6.12 for one that starts processes; it may be disabled at boot)"
    )
}

/// Returns the rules for Landlock.
fn rules(to: &Confinement) -> Result<RulesetCreated, String> {
    let level = if to.best_effort { CompatLevel::BestEffort } else { CompatLevel::HardRequirement };
    let optional = CompatLevel::BestEffort;
    let network = BitFlags::from(AccessNet::BindTcp) | AccessNet::ConnectTcp;
    let scopes = Scope::from_all(NEWEST);
    let limits_network = to.network != Network::Full;
    let has_ports = matches!(to.network, Network::Tcp { .. });
    let build = || {
        let mut rules = Ruleset::default().set_compatibility(level);
        rules = rules.handle_access(AccessFs::from_all(ABI::V3))?;
        // Without a process of its own, the filter allows signals to itself only.
        rules = rules.set_compatibility(if to.spawn { level } else { optional }).scope(scopes)?;
        if limits_network {
            // Where no ports are named, the filter refuses sockets.
            let level = if has_ports { level } else { optional };
            rules = rules.set_compatibility(level).handle_access(network)?;
        }
        rules.set_compatibility(optional).handle_access(AccessFs::from_all(NEWEST))?.create()
    };
    let mut rules = build().map_err(|error: landlock::RulesetError| lacking(&error))?;
    let mut reading = AccessFs::ReadFile | AccessFs::ReadDir;
    if to.spawn {
        reading |= AccessFs::Execute;
    }
    let devices = AccessFs::MakeChar | AccessFs::MakeBlock;
    let writing = (AccessFs::from_all(NEWEST) & !devices & !AccessFs::Execute) | reading;
    for (paths, access) in [(&to.read, reading), (&to.write, writing)] {
        for path in paths {
            let rule = allow(path, access)?;
            rules = rules.add_rule(rule).map_err(|error| lacking(&error))?;
        }
    }
    if let Network::Tcp { connect, listen } = &to.network {
        let ports = connect.iter().map(|port| (*port, AccessNet::ConnectTcp));
        for (port, access) in ports.chain(listen.iter().map(|port| (*port, AccessNet::BindTcp))) {
            rules = rules.add_rule(NetPort::new(port, access)).map_err(|error| lacking(&error))?;
        }
    }
    Ok(rules)
}

/// Returns the rule that allows this access to a file, or to all below a directory.
fn allow(path: &OsString, access: BitFlags<AccessFs>) -> Result<PathBeneath<PathFd>, String> {
    let shown = path.display();
    let open = |error: &dyn std::fmt::Display| format!("the path {shown} can't be opened: {error}");
    let file = PathFd::new(path).map_err(|error| open(&error))?;
    let is_dir = std::fs::metadata(path).map_err(|error| open(&error))?.is_dir();
    let access = if is_dir { access } else { access & AccessFs::from_file(NEWEST) };
    Ok(PathBeneath::new(file, access))
}

// ── System calls ──

type Rules = Vec<(libc::c_long, Vec<SeccompRule>)>;

/// Returns the filter: what depends on the call alone, and behind it what depends on its arguments.
fn filter(to: &Confinement) -> Result<BpfProgram, String> {
    let mut answers = answers(to);
    let mut by_arguments = || -> Result<BpfProgram, seccompiler::BackendError> {
        let rules = conditional(to)?;
        for (call, _) in &rules {
            if let Some(answer) = answers.get_mut(call).filter(|it| **it == Answer::Allow) {
                *answer = Answer::Examine;
            }
        }
        let refused = SeccompAction::Errno(libc::EPERM as u32);
        let arch = std::env::consts::ARCH.try_into()?;
        SeccompFilter::new(rules.into_iter().collect(), SeccompAction::Allow, refused, arch)?
            .try_into()
    };
    let by_arguments = by_arguments().map_err(|error| format!("seccomp: {error}"))?;
    table::filter(&answers, by_arguments).map_err(|why| format!("seccomp: {why}"))
}

/// Returns the answer to each system call that does not end the process.
fn answers(to: &Confinement) -> BTreeMap<libc::c_long, Answer> {
    let sockets = match to.network {
        Network::Denied => Answer::Fail(libc::EACCES),
        Network::Tcp { .. } | Network::Full => Answer::Allow,
    };
    let listening = match &to.network {
        Network::Tcp { listen, .. } if listen.is_empty() => Answer::Fail(libc::EACCES),
        _ => sockets,
    };
    let processes = if to.spawn { Answer::Allow } else { Answer::Fail(libc::EPERM) };
    let lists = [
        (ALLOWED, Answer::Allow),
        (ALLOWED_HERE, Answer::Allow),
        (REFUSED, Answer::Fail(libc::EPERM)),
        (REFUSED_HERE, Answer::Fail(libc::EPERM)),
        (SOCKETS, sockets),
        (LISTENING, listening),
        (UNKNOWN, Answer::Fail(libc::ENOTSUP)),
        (PROCESSES, processes),
        (PROCESSES_HERE, processes),
        // Its arguments are in memory, where a filter can't see them. The C library uses `clone` then.
        (&[libc::SYS_clone3], Answer::Fail(libc::ENOSYS)),
    ];
    let each =
        lists.into_iter().flat_map(|(calls, answer)| calls.iter().map(move |it| (*it, answer)));
    each.collect()
}

/// Returns what is refused of calls that are otherwise allowed.
fn conditional(to: &Confinement) -> Result<Rules, seccompiler::BackendError> {
    use SeccompCmpOp::{Eq, MaskedEq, Ne};
    let is = |argument, operator, value: u64| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value & 0xffff_ffff)
    };
    let rule = |conditions: &[(u8, SeccompCmpOp, u64)]| {
        let conditions =
            conditions.iter().map(|(at, operator, value)| is(*at, operator.clone(), *value));
        SeccompRule::new(conditions.collect::<Result<_, _>>()?)
    };
    let any_of = |argument, values: &[u64]| {
        values.iter().map(|value| rule(&[(argument, Eq, *value)])).collect::<Result<Vec<_>, _>>()
    };
    let none_of = |argument, values: &[u64]| {
        let conditions: Vec<_> = values.iter().map(|value| (argument, Ne, *value)).collect();
        rule(&conditions)
    };
    let pid = u64::from(std::process::id());
    let namespaces = [
        libc::CLONE_NEWNS,
        libc::CLONE_NEWCGROUP,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWNET,
    ]
    .map(|flag| flag as u64);
    let mut clone = Vec::new();
    for flag in namespaces {
        clone.push(rule(&[(0, MaskedEq(flag), flag)])?);
    }
    if !to.spawn {
        clone.push(rule(&[(0, MaskedEq(libc::CLONE_THREAD as u64), 0)])?);
    }
    // A kind of socket is compared as a whole: the kernel takes SOCK_RAW for SOCK_DGRAM where there is no such thing,
    // and a kind that is not known here may be worse.
    let kinds = |kinds: &[libc::c_int]| -> Vec<u64> {
        let options =
            [0, libc::SOCK_CLOEXEC, libc::SOCK_NONBLOCK, libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK];
        kinds.iter().flat_map(|kind| options.map(|option| (kind | option) as u64)).collect()
    };
    // A program that may only read a file can take a lease on it. Whoever opens the file to write then waits.
    let mut fcntl = vec![rule(&[(1, Eq, libc::F_SETLEASE as u64)])?];
    if !to.spawn {
        // Owners of files get signals; that of a terminal is who is in the foreground, and need not be named. Where there
        // are processes, which a pool's workers are, Landlock stops signals to others.
        fcntl.extend(any_of(1, &FCNTL_REFUSED)?);
        let asynchronous = libc::O_ASYNC as u64;
        let is_set = (2, MaskedEq(asynchronous), asynchronous);
        fcntl.push(rule(&[(1, Eq, libc::F_SETFL as u64), is_set])?);
    }
    let of_processes: &[u64] = if to.spawn { &PRCTL_OF_PROCESSES } else { &[] };
    let prctl = [&PRCTL_ALLOWED, of_processes].concat();
    let mut rules = vec![
        (libc::SYS_clone, clone),
        (libc::SYS_ioctl, vec![none_of(1, &IOCTL_ALLOWED)?]),
        (libc::SYS_fcntl, fcntl),
        (libc::SYS_prctl, vec![none_of(0, &prctl)?]),
        (libc::SYS_prlimit64, vec![none_of(0, &[0, pid])?]),
        (libc::SYS_sched_setaffinity, vec![none_of(0, &[0])?]),
        (libc::SYS_setpriority, vec![none_of(0, &[0])?, none_of(1, &[0])?]),
        (
            libc::SYS_socketpair,
            vec![
                none_of(0, &[libc::AF_UNIX as u64])?,
                // A datagram can be sent to another socket than the peer.
                none_of(1, &kinds(&[libc::SOCK_STREAM, libc::SOCK_SEQPACKET]))?,
            ],
        ),
    ];
    if !to.spawn {
        // Itself and its group.
        rules.push((libc::SYS_kill, vec![none_of(0, &[0, pid, pid.wrapping_neg()])?]));
        rules.push((libc::SYS_tgkill, vec![none_of(0, &[pid])?]));
    }
    if to.write.is_empty() {
        // It stops other programs, and needs no right to write.
        let exclusive = libc::LOCK_EX as u64;
        rules.push((libc::SYS_flock, vec![rule(&[(1, MaskedEq(exclusive), exclusive)])?]));
    }
    let internet = [libc::AF_INET as u64, libc::AF_INET6 as u64];
    match to.network {
        Network::Denied => {}
        // No protocol but TCP, for which Landlock knows ports.
        Network::Tcp { .. } => {
            let socket = vec![
                none_of(0, &internet)?,
                none_of(1, &kinds(&[libc::SOCK_STREAM]))?,
                none_of(2, &[0, libc::IPPROTO_TCP as u64])?,
            ];
            rules.push((libc::SYS_socket, socket));
            // Connects without the check of the port.
            let open = libc::MSG_FASTOPEN as u64;
            for (call, flags) in
                [(libc::SYS_sendto, 3), (libc::SYS_sendmsg, 2), (libc::SYS_sendmmsg, 3)]
            {
                rules.push((call, vec![rule(&[(flags, MaskedEq(open), open)])?]));
            }
        }
        Network::Full => {
            let families = [internet[0], internet[1], libc::AF_NETLINK as u64];
            // Addresses and routes, which looking up a name asks for.
            let others = rule(&[(0, Eq, families[2]), (2, Ne, libc::NETLINK_ROUTE as u64)])?;
            rules.push((libc::SYS_socket, vec![none_of(0, &families)?, others]));
        }
    }
    Ok(rules)
}

// ── The report ──

/// Installs the handler of SIGSYS.
fn install_handler() {
    let handler = on_refusal as extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);
    // SAFETY: plain system calls on local data. The handler has comments of its own.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigaction(libc::SIGSYS, &action, std::ptr::null_mut());
    }
}

/// Records the system call that a filter has refused, and ends the process by the same signal.
extern "C" fn on_refusal(_signal: c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
    /// The offset of `si_syscall` in a `siginfo_t`, after three numbers and an address; see sigaction(2).
    const CALL: usize = 16 + size_of::<usize>();
    /// SYS_SECCOMP of `si_code`.
    const BY_FILTER: c_int = 1;
    // SAFETY: the kernel passes a valid `info` of 128 bytes to a handler that asks for it. What is called here is
    // safe in a signal handler.
    unsafe {
        if (*info).si_code == BY_FILTER
            && !fork_guard::is_forked()
            && let Some(lane) = LANE.get()
        {
            let call = info.cast::<u8>().add(CALL).cast::<c_int>().read();
            lane.set_abort_reason(AbortReason::Refused(call.cast_unsigned()));
        }
        libc::signal(libc::SIGSYS, libc::SIG_DFL);
        libc::raise(libc::SIGSYS); // delivered when this returns
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn no_call_is_listed_twice_and_every_filter_compiles() {
        let lists = [
            ALLOWED,
            ALLOWED_HERE,
            REFUSED,
            REFUSED_HERE,
            SOCKETS,
            LISTENING,
            UNKNOWN,
            PROCESSES,
            PROCESSES_HERE,
        ];
        let mut all = lists.concat();
        let listed = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), listed);
        for spawn in [false, true] {
            for network in
                [Network::Denied, Network::Full, Network::Tcp { connect: vec![80], listen: vec![] }]
            {
                let to = Confinement { network, spawn, ..Confinement::default() };
                assert!(filter(&to).unwrap().len() <= 1024);
            }
        }
    }
}

//! Confines this process to what its pool allows, by means that need no privilege: Landlock for files, TCP ports and
//! signals, and seccomp filters for system calls. A process can't undo either, and passes both on to its programs.
//!
//! - **Landlock** denies every access to the file system that is not named, except what it does not know: metadata
//!   (`stat`), and the changes of attributes that the filters refuse.
//! - **The filters** allow a list of system calls. Of those that programs try in good faith (a socket, a process, an
//!   attribute of a file), some fail with an error, as where the user lacks the right. All others end the process: SIGSYS,
//!   whose handler records the call's number in the lane.
//!
//! Where filters disagree, the kernel takes the most severe answer, and it takes a trap for more severe than an error.
//! So the list allows what another filter refuses.
//!
//! Both are for the calling thread, and for those that it starts later. So other threads are refused here.

use std::ffi::{OsString, c_int, c_void};
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

use super::template_process::other_threads;
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
    let others = other_threads();
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
    rules(to)?.restrict_self().map_err(|error| lacking(&error))?;
    let filters = filters(to).map_err(|error| format!("seccomp: {error}"));
    let applied = filters.and_then(|filters| {
        filters.iter().try_for_each(|filter| {
            seccompiler::apply_filter(filter).map_err(|error| {
                format!("this kernel has no seccomp filters, or refuses them: {error}")
            })
        })
    });
    if to.best_effort { Ok(()) } else { applied }
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
        // Without a process of its own, the filters allow signals to itself only.
        rules = rules.set_compatibility(if to.spawn { level } else { optional }).scope(scopes)?;
        if limits_network {
            // Where no ports are named, the filters refuse sockets.
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

/// Returns the filters, in the order of their installation.
fn filters(to: &Confinement) -> Result<Vec<BpfProgram>, seccompiler::BackendError> {
    let unknown = SeccompAction::Errno(libc::ENOSYS as u32);
    let refused = SeccompAction::Errno(libc::EPERM as u32);
    let no_network = SeccompAction::Errno(libc::EACCES as u32);
    let always = |calls: &[libc::c_long]| calls.iter().map(|call| (*call, Vec::new())).collect();
    let mut allowed: Rules = always(ALLOWED);
    allowed.extend(always(ALLOWED_HERE));
    allowed.extend(always(REFUSED));
    allowed.extend(always(REFUSED_HERE));
    allowed.extend(always(SOCKETS));
    allowed.extend(always(PROCESSES));
    allowed.extend(always(PROCESSES_HERE));
    allowed.push((libc::SYS_clone3, Vec::new()));
    let mut denied: Rules = always(REFUSED);
    denied.extend(always(REFUSED_HERE));
    denied.extend(conditional(to)?);
    if !to.spawn {
        denied.extend(always(PROCESSES));
        denied.extend(always(PROCESSES_HERE));
    }
    // Its arguments are in memory, where a filter can't see them. The C library uses `clone` then.
    let mut programs = vec![program(always(&[libc::SYS_clone3]), SeccompAction::Allow, unknown)?];
    if to.network == Network::Denied {
        programs.push(program(always(SOCKETS), SeccompAction::Allow, no_network)?);
    }
    programs.push(program(denied, SeccompAction::Allow, refused)?);
    programs.push(program(allowed, SeccompAction::Trap, SeccompAction::Allow)?);
    Ok(programs)
}

/// Compiles a filter: `hit` is the answer to the calls in `rules`, `miss` to all others.
fn program(
    rules: Rules,
    miss: SeccompAction,
    hit: SeccompAction,
) -> Result<BpfProgram, seccompiler::BackendError> {
    let arch = std::env::consts::ARCH.try_into()?;
    let rules = rules.into_iter().map(|(call, rules)| (i64::from(call), rules)).collect();
    SeccompFilter::new(rules, miss, hit, arch)?.try_into()
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
    let kind = MaskedEq(0xf);
    let mut rules = vec![
        (libc::SYS_clone, clone),
        // Owners of files get signals, which no scope of Landlock stops in every kernel.
        (libc::SYS_fcntl, any_of(1, &FCNTL_REFUSED)?),
        (libc::SYS_ioctl, any_of(1, &IOCTL_REFUSED)?),
        (libc::SYS_prctl, vec![none_of(0, &PRCTL_ALLOWED)?]),
        (libc::SYS_prlimit64, vec![none_of(0, &[0, pid])?]),
        (libc::SYS_sched_setaffinity, vec![none_of(0, &[0])?]),
        (libc::SYS_setpriority, vec![none_of(0, &[0])?, none_of(1, &[0])?]),
        (
            libc::SYS_socketpair,
            vec![
                none_of(0, &[libc::AF_UNIX as u64])?,
                // A datagram can be sent to another socket than the peer.
                rule(&[(1, kind.clone(), libc::SOCK_DGRAM as u64)])?,
            ],
        ),
    ];
    if !to.spawn {
        // Itself and its group.
        rules.push((libc::SYS_kill, vec![none_of(0, &[0, pid, pid.wrapping_neg()])?]));
        rules.push((libc::SYS_tgkill, vec![none_of(0, &[pid])?]));
    }
    let internet = [libc::AF_INET as u64, libc::AF_INET6 as u64];
    match to.network {
        Network::Denied => {}
        // No protocol but TCP, for which Landlock knows ports.
        Network::Tcp { .. } => {
            let others = [libc::SOCK_DGRAM, libc::SOCK_RAW, libc::SOCK_RDM, libc::SOCK_SEQPACKET];
            let mut socket = vec![none_of(0, &internet)?];
            for other in others {
                socket.push(rule(&[(1, kind.clone(), other as u64)])?);
            }
            socket.push(none_of(2, &[0, libc::IPPROTO_TCP as u64])?);
            rules.push((libc::SYS_socket, socket));
        }
        Network::Full => {
            let families = [internet[0], internet[1], libc::AF_NETLINK as u64];
            rules.push((libc::SYS_socket, vec![none_of(0, &families)?]));
        }
    }
    Ok(rules)
}

/// The operations of fcntl(2) that make the kernel send signals.
const FCNTL_REFUSED: [u64; 4] = [
    libc::F_SETOWN as u64,
    10, /* F_SETSIG */
    15, /* F_SETOWN_EX */
    libc::F_NOTIFY as u64,
];

/// The operations of ioctl(2) that do so, or that type or take over a terminal.
const IOCTL_REFUSED: [u64; 6] = [
    0x8901, /* FIOSETOWN */
    0x8902, /* SIOCSPGRP */
    libc::TIOCSTI as u64,
    libc::TIOCSCTTY as u64,
    libc::TIOCSPGRP as u64,
    0x541c, /* TIOCLINUX */
];

/// The operations of prctl(2) that concern this process and weaken nothing.
const PRCTL_ALLOWED: [u64; 16] = [
    libc::PR_SET_NAME as u64,
    libc::PR_GET_NAME as u64,
    libc::PR_GET_DUMPABLE as u64,
    libc::PR_GET_PDEATHSIG as u64,
    libc::PR_CAPBSET_READ as u64,
    libc::PR_SET_NO_NEW_PRIVS as u64,
    libc::PR_GET_NO_NEW_PRIVS as u64,
    libc::PR_SET_SECCOMP as u64,
    libc::PR_GET_SECCOMP as u64,
    libc::PR_SET_THP_DISABLE as u64,
    libc::PR_GET_THP_DISABLE as u64,
    libc::PR_SET_TIMERSLACK as u64,
    libc::PR_GET_TIMERSLACK as u64,
    libc::PR_GET_CHILD_SUBREAPER as u64,
    libc::PR_GET_TSC as u64,
    0x5356_4d41, /* PR_SET_VMA */
];

/// Sockets, which fail where the network is denied.
const SOCKETS: &[libc::c_long] = &[
    libc::SYS_socket,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
];

/// Processes, which fail where none may be started.
const PROCESSES: &[libc::c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_setpgid,
    libc::SYS_setsid,
    libc::SYS_pidfd_open,
];

#[cfg(target_arch = "x86_64")]
const PROCESSES_HERE: &[libc::c_long] = &[libc::SYS_fork, libc::SYS_vfork];
#[cfg(not(target_arch = "x86_64"))]
const PROCESSES_HERE: &[libc::c_long] = &[];

/// What fails. A program may try it and go on without.
const REFUSED: &[libc::c_long] = &[
    // attributes of files, which Landlock does not know
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    452, // fchmodat2
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    463, // setxattrat
    466, // removexattrat
    469, // file_setattr
    libc::SYS_mknodat,
    // what happens to files elsewhere
    libc::SYS_inotify_init1,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_rm_watch,
    // other processes of the user
    libc::SYS_tkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_pidfd_send_signal,
    libc::SYS_ioprio_set,
    libc::SYS_sched_setscheduler,
    libc::SYS_sched_setparam,
    libc::SYS_sched_setattr,
    libc::SYS_shmget,
    libc::SYS_shmat,
    libc::SYS_shmctl,
    libc::SYS_shmdt,
    libc::SYS_semget,
    libc::SYS_semop,
    libc::SYS_semctl,
    libc::SYS_semtimedop,
    libc::SYS_msgget,
    libc::SYS_msgsnd,
    libc::SYS_msgrcv,
    libc::SYS_msgctl,
    libc::SYS_mq_open,
    libc::SYS_mq_unlink,
    // other users
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setgroups,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_capset,
    libc::SYS_personality,
];

#[cfg(target_arch = "x86_64")]
const REFUSED_HERE: &[libc::c_long] = &[
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_futimesat,
    libc::SYS_mknod,
    libc::SYS_inotify_init,
];
#[cfg(not(target_arch = "x86_64"))]
const REFUSED_HERE: &[libc::c_long] = &[];

/// What works, within what Landlock allows and [`conditional`] does not refuse.
const ALLOWED: &[libc::c_long] = &[
    // files
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_getdents64,
    libc::SYS_readlinkat,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_truncate,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_syncfs,
    libc::SYS_sync_file_range,
    libc::SYS_flock,
    libc::SYS_fadvise64,
    libc::SYS_readahead,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_tee,
    libc::SYS_vmsplice,
    libc::SYS_copy_file_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    libc::SYS_fcntl,
    libc::SYS_ioctl,
    libc::SYS_getcwd,
    libc::SYS_chdir,
    libc::SYS_fchdir,
    libc::SYS_umask,
    libc::SYS_getxattr,
    libc::SYS_lgetxattr,
    libc::SYS_fgetxattr,
    libc::SYS_listxattr,
    libc::SYS_llistxattr,
    libc::SYS_flistxattr,
    // memory
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_mincore,
    libc::SYS_msync,
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_munlock,
    libc::SYS_mlockall,
    libc::SYS_munlockall,
    libc::SYS_membarrier,
    libc::SYS_memfd_create,
    libc::SYS_get_mempolicy,
    libc::SYS_pkey_alloc,
    libc::SYS_pkey_free,
    libc::SYS_pkey_mprotect,
    462, // mseal
    // time
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_times,
    libc::SYS_getitimer,
    libc::SYS_setitimer,
    libc::SYS_timer_create,
    libc::SYS_timer_settime,
    libc::SYS_timer_gettime,
    libc::SYS_timer_getoverrun,
    libc::SYS_timer_delete,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    // this process
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getgroups,
    libc::SYS_getresuid,
    libc::SYS_getresgid,
    libc::SYS_getpgid,
    libc::SYS_getsid,
    libc::SYS_getpriority,
    libc::SYS_setpriority,
    libc::SYS_prlimit64,
    libc::SYS_getrusage,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    libc::SYS_getcpu,
    libc::SYS_getrandom,
    libc::SYS_capget,
    libc::SYS_prctl,
    libc::SYS_seccomp,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_add_rule,
    libc::SYS_landlock_restrict_self,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getattr,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_get_priority_max,
    libc::SYS_sched_get_priority_min,
    libc::SYS_sched_rr_get_interval,
    libc::SYS_ioprio_get,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_wait4,
    libc::SYS_waitid,
    // threads and signals
    libc::SYS_clone,
    libc::SYS_futex,
    449, // futex_waitv
    454, // futex_wake
    455, // futex_wait
    456, // futex_requeue
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_rseq,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_signalfd4,
    libc::SYS_kill,
    libc::SYS_tgkill,
    // waiting, and what is connected already
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_socketpair,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
];

#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[libc::c_long] = &[
    libc::SYS_open,
    libc::SYS_creat,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_unlink,
    libc::SYS_link,
    libc::SYS_symlink,
    libc::SYS_dup2,
    libc::SYS_pipe,
    libc::SYS_getdents,
    libc::SYS_poll,
    libc::SYS_select,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd,
    libc::SYS_signalfd,
    libc::SYS_time,
    libc::SYS_alarm,
    libc::SYS_pause,
    libc::SYS_getpgrp,
    libc::SYS_getrlimit,
    libc::SYS_setrlimit,
    libc::SYS_arch_prctl,
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[libc::c_long] = &[];

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
        let lists =
            [ALLOWED, ALLOWED_HERE, REFUSED, REFUSED_HERE, SOCKETS, PROCESSES, PROCESSES_HERE];
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
                // The kernel takes no longer ones.
                assert!(filters(&to).unwrap().iter().all(|filter| filter.len() <= 4096));
            }
        }
    }
}

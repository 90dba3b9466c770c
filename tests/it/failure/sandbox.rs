//! A worker that has been taken over can do no harm: each attack works without the sandbox, and fails in it.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command};

use crate::support::{SOON, square, wait_until};
use procpool::{
    DeathCause, Error, Limits, Pool, PoolBuilder, Ports, Sandbox, StartError, StartMethod,
    TaskErrorKind,
};

/// What an attack has achieved: the error number, or 0.
type Outcome = i32;

fn errno<T>(done: io::Result<T>) -> Outcome {
    match done {
        Ok(_) => 0,
        Err(error) => error.raw_os_error().unwrap_or(-1),
    }
}

/// The error number of a system call that returned this.
fn call(returned: i64) -> Outcome {
    if returned >= 0 { 0 } else { io::Error::last_os_error().raw_os_error().unwrap() }
}

fn builder() -> PoolBuilder {
    Pool::builder().workers(1).task_timeout(SOON)
}

/// Runs an attack without a sandbox, where it must succeed, and in one.
#[track_caller]
fn attack<A>(sandbox: Sandbox, attack: fn(A) -> Outcome, argument: A) -> Result<Outcome, DeathCause>
where
    A: serde::Serialize + serde::de::DeserializeOwned + Clone,
{
    let open = builder().build().unwrap();
    assert_eq!(open.apply(attack, argument.clone()), Ok(0), "it works without a sandbox");
    let pool = builder().sandbox(sandbox).build().unwrap();
    let outcome = pool.apply(attack, argument).map_err(|error| match error.kind() {
        TaskErrorKind::Died { cause, .. } => *cause,
        other => panic!("{other}"),
    });
    assert_eq!(pool.apply(square, 3), Ok(9), "the pool goes on");
    outcome
}

fn name(outcome: Result<Outcome, DeathCause>) -> &'static str {
    outcome.unwrap_err().syscall_name().unwrap()
}

#[test]
fn a_file_that_is_not_named_is_neither_read_nor_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("secret"), "secret").unwrap();
    let read = |path: String| errno(fs::read(path));
    assert_eq!(attack(Sandbox::strict(), read, path("secret")), Ok(libc::EACCES));
    let list = |path: String| errno(fs::read_dir(path));
    assert_eq!(attack(Sandbox::strict(), list, path("")), Ok(libc::EACCES));
    let write = |path: String| errno(fs::write(path, "x"));
    assert_eq!(attack(Sandbox::strict(), write, path("new")), Ok(libc::EACCES));
    let readable = Sandbox::strict().read(dir.path());
    assert_eq!(attack(readable.clone(), write, path("new")), Ok(libc::EACCES));
    assert_eq!(attack(readable.clone(), read, path("secret")), Ok(0));
    let remove = |path: String| errno(fs::remove_file(path));
    let pool = builder().sandbox(readable.clone()).build().unwrap();
    assert_eq!(pool.apply(remove, path("secret")), Ok(libc::EACCES));
    let cut = |path: String| {
        call(unsafe { libc::truncate(format!("{path}\0").as_ptr().cast(), 0) }.into())
    };
    assert_eq!(attack(readable.clone(), cut, path("secret")), Ok(libc::EACCES));
    let chmod = |path: String| errno(fs::set_permissions(path, fs::Permissions::from_mode(0o777)));
    assert_eq!(attack(readable, chmod, path("secret")), Ok(libc::EPERM));
    let writable = Sandbox::strict().write(dir.path());
    assert_eq!(attack(writable, write, path("new")), Ok(0));
    // By another name, which leads out of what is named.
    fs::create_dir(path("named")).unwrap();
    std::os::unix::fs::symlink(path("secret"), path("named/link")).unwrap();
    let named = Sandbox::strict().write(path("named"));
    assert_eq!(attack(named, read, path("named/link")), Ok(libc::EACCES));
}

#[test]
fn no_connection_is_made_but_to_ports_that_are_named() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let connect = |port: u16| errno(TcpStream::connect(("127.0.0.1", port)));
    assert_eq!(attack(Sandbox::strict(), connect, port), Ok(libc::EACCES));
    let other = Sandbox::strict().network(Ports::connect([1]));
    assert_eq!(attack(other, connect, port), Ok(libc::EACCES));
    let named = Sandbox::strict().network(Ports::connect([port]));
    assert_eq!(attack(named.clone(), connect, port), Ok(0));
    // By the first packet, without a call of connect.
    let open = |port: u16| {
        let address = libc::sockaddr_in {
            sin_family: libc::AF_INET as u16,
            sin_port: port.to_be(),
            sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes([127, 0, 0, 1]) },
            sin_zero: [0; 8],
        };
        call(unsafe {
            let socket = libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0);
            let (address, length) = ((&raw const address).cast(), size_of_val(&address) as u32);
            libc::sendto(socket, [0u8].as_ptr().cast(), 1, libc::MSG_FASTOPEN, address, length)
        } as i64)
    };
    let other = Sandbox::strict().network(Ports::connect([1]));
    assert_eq!(attack(other, open, port), Ok(libc::EPERM));
    // Without a port, the kernel chooses one.
    let unbound = |()| {
        call(unsafe { libc::listen(libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0), 1) }.into())
    };
    assert_eq!(attack(named.clone(), unbound, ()), Ok(libc::EACCES));
    let listen = |()| errno(TcpListener::bind("127.0.0.1:0"));
    assert_eq!(attack(named.clone(), listen, ()), Ok(libc::EACCES));
    assert_eq!(attack(named.clone().network(Ports::connect([]).listen([0])), listen, ()), Ok(0));
    let send = |port: u16| {
        errno(UdpSocket::bind("127.0.0.1:0").and_then(|it| it.send_to(b"x", ("127.0.0.1", port))))
    };
    assert_eq!(attack(named, send, port), Ok(libc::EPERM));
    assert_eq!(attack(Sandbox::strict().network(Ports::all()), send, port), Ok(0));
    // Sockets of this host, by a file's name: also through one that is open already.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket").to_str().unwrap().to_owned();
    let _listener = UnixListener::bind(&path).unwrap();
    let local = |path: String| errno(UnixStream::connect(path));
    assert_eq!(attack(Sandbox::strict().write(dir.path()), local, path.clone()), Ok(libc::EACCES));
    fs::remove_file(&path).unwrap();
    let _receiver = UnixDatagram::bind(&path).unwrap();
    let through =
        |path: String| errno(UnixDatagram::pair().and_then(|(one, _)| one.send_to(b"x", path)));
    assert_eq!(attack(Sandbox::strict().write(dir.path()), through, path.clone()), Ok(libc::EPERM));
    // A raw socket of this host is one of datagrams.
    let raw = |path: String| {
        let mut pair = [0; 2];
        let made = unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_RAW, 0, pair.as_mut_ptr()) };
        if made != 0 {
            return call(made.into());
        }
        let socket = UnixDatagram::from(unsafe { OwnedFd::from_raw_fd(pair[0]) });
        errno(socket.send_to(b"x", path))
    };
    assert_eq!(attack(Sandbox::strict().write(dir.path()), raw, path), Ok(libc::EPERM));
}

#[test]
fn a_socket_is_of_a_kind_that_the_sandbox_knows() {
    let pair = |kind: i32| {
        let mut pair = [0; 2];
        call(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, pair.as_mut_ptr()) }.into())
    };
    let socket = |kind: i32| call(unsafe { libc::socket(libc::AF_INET, kind, 0) }.into());
    let pool = builder().sandbox(Sandbox::strict().network(Ports::connect([1]))).build().unwrap();
    for kind in 0..16 {
        for option in [0, libc::SOCK_CLOEXEC, libc::SOCK_NONBLOCK] {
            let is_connected = [libc::SOCK_STREAM, libc::SOCK_SEQPACKET].contains(&kind);
            let expected = if is_connected { 0 } else { libc::EPERM };
            assert_eq!(pool.apply(pair, kind | option), Ok(expected), "a pair of kind {kind}");
            let expected = if kind == libc::SOCK_STREAM { 0 } else { libc::EPERM };
            assert_eq!(pool.apply(socket, kind | option), Ok(expected), "a socket of kind {kind}");
        }
    }
}

#[test]
fn a_file_sends_no_signals_and_a_terminal_obeys_nobody() {
    let asynchronous = |()| {
        let (one, _other) = UnixStream::pair().unwrap();
        call(unsafe { libc::fcntl(one.as_raw_fd(), libc::F_SETFL, libc::O_ASYNC) }.into())
    };
    assert_eq!(attack(Sandbox::strict(), asynchronous, ()), Ok(libc::EPERM));
    // A pool in a worker needs it. Landlock stops signals to others then.
    assert_eq!(attack(Sandbox::strict().spawn(true), asynchronous, ()), Ok(0));
    let waiting = |()| {
        let (one, _other) = UnixStream::pair().unwrap();
        call(unsafe { libc::fcntl(one.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) }.into())
    };
    assert_eq!(attack(Sandbox::strict(), waiting, ()), Ok(0));
    // The attributes of a file that may be read, but not changed.
    let attributes = |path: String| {
        let file = File::open(path).unwrap();
        let mut flags = 0;
        let get = unsafe { libc::ioctl(file.as_raw_fd(), 0x8008_6601, &mut flags) };
        // Of file systems that have none, this one says so.
        let set = unsafe { libc::ioctl(file.as_raw_fd(), 0x4008_6602, &flags) };
        if get == 0 { call(set.into()) } else { 0 }
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file").to_str().unwrap().to_owned();
    fs::write(&path, "x").unwrap();
    let outcome = attack(Sandbox::strict().read(dir.path()), attributes, path.clone());
    assert!([Ok(libc::EPERM), Ok(0)].contains(&outcome), "{outcome:?}");
    // What keeps others from the file.
    let lock = |path: String| {
        call(unsafe { libc::flock(File::open(path).unwrap().as_raw_fd(), libc::LOCK_EX) }.into())
    };
    let readable = Sandbox::strict().read(dir.path());
    assert_eq!(attack(readable.clone(), lock, path.clone()), Ok(libc::EPERM));
    assert_eq!(attack(Sandbox::strict().write(dir.path()), lock, path.clone()), Ok(0));
    let lease = |path: String| {
        let file = File::open(path).unwrap();
        call(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_RDLCK) }.into())
    };
    assert_eq!(attack(readable, lease, path), Ok(libc::EPERM));
    // What is refused is refused for every file, and what is allowed reaches it: it is no terminal.
    let control = |operation: u64| {
        let file = File::open("/dev/null").or_else(|_| File::open("/proc/self/exe"));
        let (one, _other) = UnixStream::pair().unwrap();
        let file = file.as_ref().map_or(one.as_raw_fd(), AsRawFd::as_raw_fd);
        let mut place = [0u8; 256];
        call(unsafe { libc::ioctl(file, operation, place.as_mut_ptr()) }.into())
    };
    let pool = builder().sandbox(Sandbox::strict()).build().unwrap();
    let refused = [
        0x4008_6602, /* FS_IOC_SETFLAGS */
        0x401c_5820, /* FS_IOC_FSSETXATTR */
        0x4080_6685, /* FS_IOC_ENABLE_VERITY */
        0x5000_9401, /* BTRFS_IOC_SNAP_CREATE */
        0x8901,      /* FIOSETOWN */
        libc::TIOCSTI,
        libc::TIOCNOTTY,
        libc::TIOCSCTTY,
        libc::TIOCSPGRP,
        libc::TIOCSETD,
        libc::TIOCSWINSZ,
        libc::TCSETS,
        libc::TCSETSF,
        0x402c_542b, /* TCSETS2 */
        0x541c,      /* TIOCLINUX */
        libc::FIOASYNC,
        0x4b3a, /* KDSETMODE */
        0x5606, /* VT_ACTIVATE */
    ];
    for operation in refused {
        assert_eq!(pool.apply(control, operation), Ok(libc::EPERM), "{operation:#x}");
    }
    for operation in [libc::TCGETS, libc::TIOCGWINSZ, libc::TIOCGPGRP] {
        assert_ne!(pool.apply(control, operation), Ok(libc::EPERM), "{operation:#x}");
    }
    assert_eq!(pool.apply(control, libc::FIONREAD), Ok(0));
}

#[test]
fn no_process_is_started_unless_that_is_allowed_and_it_has_the_sandbox_too() {
    let start = |program: String| errno(Command::new(program).status());
    assert_eq!(attack(Sandbox::strict(), start, "/bin/true".to_owned()), Ok(libc::EPERM));
    let fork = |()| {
        let pid = unsafe { libc::fork() };
        match pid {
            0 => unsafe { libc::_exit(0) },
            pid => call(pid.into()),
        }
    };
    assert_eq!(attack(Sandbox::strict(), fork, ()), Ok(libc::EPERM));
    let mut programs = Sandbox::strict().spawn(true).write("/dev/null");
    for dir in ["/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache"] {
        if Path::new(dir).exists() {
            programs = programs.read(dir);
        }
    }
    let cat = |program: String| match Command::new(program).arg("/etc/passwd").output() {
        Ok(output) if output.status.success() => 0,
        Ok(output) => i32::from(String::from_utf8_lossy(&output.stderr).contains("denied")),
        Err(error) => error.raw_os_error().unwrap_or(-1),
    };
    assert_eq!(attack(programs.clone(), cat, "/bin/cat".to_owned()), Ok(1));
    let sum = |program: String| errno(Command::new(program).arg("1").output());
    assert_eq!(attack(programs, sum, "/usr/bin/seq".to_owned()), Ok(0));
}

#[test]
fn other_processes_get_no_signal_and_are_not_looked_into() {
    struct Victim(Child);
    impl Drop for Victim {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
    let victim = || Victim(Command::new("sleep").arg("1000").spawn().unwrap());
    let kill = |pid: u32| call(unsafe { libc::kill(pid.cast_signed(), libc::SIGCONT) }.into());
    let first = victim();
    assert_eq!(attack(Sandbox::strict(), kill, first.0.id()), Ok(libc::EPERM));
    // Its own pool's process, and everything at once.
    let parent = |()| call(unsafe { libc::kill(libc::getppid(), libc::SIGCONT) }.into());
    assert_eq!(attack(Sandbox::strict(), parent, ()), Ok(libc::EPERM));
    let owned = |pid: u32| {
        let (reader, _writer) = io::pipe().unwrap();
        let owner = unsafe { libc::fcntl(reader.as_raw_fd(), libc::F_SETOWN, pid) };
        call(owner.into())
    };
    assert_eq!(attack(Sandbox::strict(), owned, first.0.id()), Ok(libc::EPERM));
    let with_programs = Sandbox::strict().spawn(true);
    assert_eq!(attack(with_programs.clone(), kill, first.0.id()), Ok(libc::EPERM));
    // By a descriptor of it, and by a file of which it is the owner.
    let by_descriptor = |pid: u32| {
        call(unsafe {
            let fd = libc::syscall(libc::SYS_pidfd_open, pid, 0);
            libc::syscall(libc::SYS_pidfd_send_signal, fd, libc::SIGCONT, 0, 0)
        })
    };
    assert_eq!(attack(Sandbox::strict(), by_descriptor, first.0.id()), Ok(libc::EPERM));
    assert_eq!(attack(with_programs.clone(), by_descriptor, first.0.id()), Ok(libc::EPERM));
    let mut third = victim();
    let by_owner = |pid: u32| {
        let (reader, mut writer) = io::pipe().unwrap();
        unsafe {
            libc::fcntl(reader.as_raw_fd(), libc::F_SETOWN, pid);
            libc::fcntl(reader.as_raw_fd(), 10, libc::SIGKILL);
            libc::fcntl(reader.as_raw_fd(), libc::F_SETFL, libc::O_ASYNC);
        }
        errno(writer.write_all(b"x"))
    };
    let pool = builder().sandbox(with_programs).build().unwrap();
    assert_eq!(pool.apply(by_owner, third.0.id()), Ok(0));
    assert_eq!(third.0.try_wait().unwrap(), None, "it got no signal");
    let open = builder().build().unwrap();
    assert_eq!(open.apply(by_owner, third.0.id()), Ok(0));
    wait_until("without a sandbox it got one", || third.0.try_wait().unwrap().is_some());
    let trace = |pid: u32| {
        let traced = unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, 0, 0) };
        call(traced)
    };
    let second = victim();
    assert_eq!(name(attack(Sandbox::strict(), trace, second.0.id())), "ptrace");
    let memory = |pid: u32| {
        let mut byte = 0u8;
        let local = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
        let remote = libc::iovec { iov_base: fs_base(pid) as *mut libc::c_void, iov_len: 1 };
        call(unsafe { libc::process_vm_readv(pid.cast_signed(), &local, 1, &remote, 1, 0) } as i64)
    };
    assert_eq!(
        attack(Sandbox::strict().read("/proc"), memory_by_file, first.0.id()),
        Ok(libc::EACCES)
    );
    let outcome = attack(Sandbox::strict().read("/proc"), memory, std::process::id());
    // The map of its memory cannot be read either.
    assert!(matches!(outcome, Ok(libc::EACCES) | Err(_)), "{outcome:?}");
    let limits = |pid: u32| {
        let limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        let changed = unsafe {
            libc::prlimit(pid.cast_signed(), libc::RLIMIT_CORE, &limit, std::ptr::null_mut())
        };
        call(changed.into())
    };
    assert_eq!(attack(Sandbox::strict(), limits, first.0.id()), Ok(libc::EPERM));
    let nicer = |pid: u32| call(unsafe { libc::setpriority(libc::PRIO_PROCESS, pid, 19) }.into());
    assert_eq!(attack(Sandbox::strict(), nicer, first.0.id()), Ok(libc::EPERM));
}

/// Returns an address that a process has mapped.
fn fs_base(pid: u32) -> usize {
    let Ok(maps) = fs::read_to_string(format!("/proc/{pid}/maps")) else {
        std::process::exit(77);
    };
    usize::from_str_radix(maps.split('-').next().unwrap(), 16).unwrap()
}

fn memory_by_file(pid: u32) -> Outcome {
    errno(File::open(format!("/proc/{pid}/mem")))
}

#[test]
fn what_has_no_place_in_a_computation_ends_the_worker_and_is_named() {
    let keyring = |()| unsafe { libc::syscall(libc::SYS_keyctl, 0, -3, 0) }.min(0) as i32;
    let rings = |()| {
        let mut zeroes = [0u64; 32];
        call(unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, &mut zeroes) })
    };
    let modules = |()| call(unsafe { libc::syscall(libc::SYS_unshare, 0) });
    for (attack, name) in
        [(keyring as fn(()) -> i32, "keyctl"), (rings, "io_uring_setup"), (modules, "unshare")]
    {
        let pool = builder().sandbox(Sandbox::strict()).build().unwrap();
        let error = pool.apply(attack, ()).unwrap_err();
        let TaskErrorKind::Died { cause, .. } = error.kind() else { panic!("{error}") };
        assert_eq!(cause.syscall_name(), Some(name));
        let said = format!("its sandbox does not allow the system call {name}");
        assert!(error.to_string().contains(&said), "{error}");
    }
}

#[test]
fn in_a_sandbox_everything_else_works() {
    /// Threads, memory, time, panics, randomness, descriptors.
    fn compute(x: u64) -> u64 {
        let threads: Vec<_> = (0..4).map(|add| std::thread::spawn(move || x + add)).collect();
        let sum: u64 = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
        let (mut reader, mut writer) = io::pipe().unwrap();
        writer.write_all(&vec![1; 1000]).unwrap();
        drop(writer);
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        std::thread::sleep(std::time::Duration::from_micros(10));
        let caught = std::panic::catch_unwind(|| panic!("no")).is_err();
        let (one, two) = UnixStream::pair().unwrap();
        drop((one, two));
        println!("{}", procpool::random_u64());
        sum + bytes.len() as u64 + u64::from(caught)
    }
    for method in [StartMethod::Spawn, StartMethod::Template] {
        let pool = Pool::builder()
            .workers(2)
            .start_method(method)
            .max_memory_per_worker(1 << 30)
            .limits(Limits::new().file_size(64 << 20).processes(1000))
            .output(procpool::OutputMode::Capture)
            .sandbox(Sandbox::strict())
            .build()
            .unwrap();
        assert_eq!(pool.apply(compute, 1).unwrap(), 4 + 6 + 1000 + 1);
        assert_eq!(pool.map(square, 0..100_000).unwrap().len(), 100_000);
        let large = vec![7u8; 8 << 20];
        assert_eq!(pool.apply(|bytes: Vec<u8>| bytes, large.clone()).unwrap(), large);
        let panicked = pool.apply(|()| -> u32 { panic!("as it is") }, ()).unwrap_err();
        assert!(panicked.to_string().contains("as it is"), "{panicked}");
        let memory = procpool::shared::SharedSlice::new([1u64, 2, 3]).unwrap();
        assert_eq!(
            pool.apply(|memory: procpool::shared::SharedSlice<u64>| memory[2], memory),
            Ok(3)
        );
        let (sender, receiver) = procpool::channel::unbounded().unwrap();
        pool.apply(|sender: procpool::channel::Sender<u32>| sender.send(4).is_ok(), sender)
            .unwrap();
        assert_eq!(receiver.recv().unwrap(), 4);
        let aborted = pool.apply(|()| -> u32 { std::process::abort() }, ()).unwrap_err();
        assert!(aborted.to_string().contains("SIGABRT"), "{aborted}");
        let exhausted = pool.apply(|()| vec![1u8; 2 << 30].len(), ()).unwrap_err();
        assert!(exhausted.to_string().contains("memory"), "{exhausted}");
    }
}

#[test]
fn a_single_process_is_confined_too() {
    let read = |path: String| errno(fs::read(path));
    let mut process = procpool::Process::builder()
        .sandbox(Sandbox::strict())
        .spawn(read, "/etc/passwd".to_owned())
        .unwrap();
    assert_eq!(process.join(), Ok(libc::EACCES));
    let missing = Sandbox::strict().read("/no/such/path");
    let refused = procpool::Process::builder().sandbox(missing).spawn(square, 2);
    assert!(matches!(refused, Err(Error::Start(StartError::Sandbox(_)))));
}

#[test]
fn an_initializer_can_load_what_tasks_cannot_reach() {
    fn load(path: String) -> String {
        fs::read_to_string(path).unwrap()
    }
    fn loaded((): ()) -> (String, bool) {
        let text = procpool::with_state(|text: &mut String| text.clone()).unwrap();
        (text, fs::read("/etc/passwd").is_err())
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model").to_str().unwrap().to_owned();
    fs::write(&path, "loaded").unwrap();
    let pool = builder().initializer(load, path.clone());
    let pool = pool.sandbox(Sandbox::strict().after_initializer()).build().unwrap();
    assert_eq!(pool.apply(loaded, ()), Ok(("loaded".to_owned(), true)));
    let early = builder().initializer(load, path).sandbox(Sandbox::strict()).build().unwrap();
    let failed = early.apply(loaded, ()).unwrap_err();
    assert!(failed.to_string().contains("PermissionDenied"), "{failed}");
    let threads = |()| {
        let (begun, begins) = std::sync::mpsc::channel();
        std::thread::Builder::new()
            .name("loader".to_owned())
            .spawn(move || {
                begun.send(()).unwrap();
                std::thread::park();
            })
            .unwrap();
        begins.recv().unwrap();
    };
    let sandbox = Sandbox::strict().after_initializer();
    let pool = builder().initializer(threads, ()).sandbox(sandbox).build().unwrap();
    let failed = pool.apply(square, 1).unwrap_err();
    assert!(failed.to_string().contains("loader"), "{failed}");
}

#[test]
fn a_sandbox_that_cannot_be_fails_the_build_and_says_why() {
    let refused = builder().sandbox(Sandbox::strict().read("/no/such/path")).build().unwrap_err();
    assert!(
        matches!(&refused, Error::Start(StartError::Sandbox(why)) if why.contains("/no/such/path"))
    );
    let effort = Sandbox::strict().read("/no/such/path").best_effort();
    assert!(builder().sandbox(effort).build().is_err(), "a wrong path is no lack of the kernel");
    let pool = builder().sandbox(Sandbox::strict().best_effort()).build().unwrap();
    let read = |path: String| {
        fs::read(path).err().map(|error| error.kind() == ErrorKind::PermissionDenied)
    };
    assert_eq!(pool.apply(read, "/etc/passwd".to_owned()), Ok(Some(true)));
}

#[test]
fn no_file_becomes_larger_than_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file").to_str().unwrap().to_owned();
    let fill = |path: String| {
        let mut file = File::create(path).unwrap();
        errno((0..64).try_for_each(|_| file.write_all(&[0; 1 << 16])))
    };
    let limits = Limits::new().file_size(1 << 20);
    let pool = builder().limits(limits).sandbox(Sandbox::strict().write(dir.path()));
    let pool = pool.build().unwrap();
    assert_eq!(pool.apply(fill, path.clone()), Ok(libc::EFBIG));
    assert_eq!(fs::metadata(path).unwrap().len(), 1 << 20);
    // A value in shared memory is limited, too: by an error.
    let large = pool.apply(|()| vec![1u8; 4 << 20], ()).unwrap_err();
    assert!(matches!(large.kind(), TaskErrorKind::Encode { .. }), "{large}");
    assert_eq!(pool.apply(square, 3), Ok(9));
}

#[test]
fn shared_memory_cannot_be_shrunk_under_the_parent() {
    /// Shrinks all memory that this process has a descriptor or a mapping of. Returns how often that worked.
    fn shrink(_: Vec<u8>) -> usize {
        let is_memory = |path: &Path| {
            fs::read_link(path).is_ok_and(|to| to.to_string_lossy().contains("memfd:procpool"))
        };
        let open = |dir: &str| fs::read_dir(dir).unwrap().map(|it| it.unwrap().path());
        let all: Vec<_> = open("/proc/self/fd").chain(open("/proc/self/map_files")).collect();
        let all = all.iter().filter(|path| is_memory(path));
        let shrunk = all.filter(|path| {
            File::options().write(true).open(path).is_ok_and(|file| file.set_len(0).is_ok())
        });
        shrunk.count()
    }
    // Without a sandbox too: the memory itself is sealed.
    let pool = builder().build().unwrap();
    assert_eq!(pool.apply(shrink, vec![1; 4 << 20]), Ok(0));
    assert_eq!(pool.apply(square, 3), Ok(9));
}

/// Makes random system calls with random arguments. Returns how many, if it is alive then.
fn storm((seed, others): (u64, Vec<u64>)) -> u64 {
    // SAFETY: a plain system call. What follows would harm the machine without the filters.
    assert_eq!(unsafe { libc::prctl(libc::PR_GET_SECCOMP) }, 2, "filters are there");
    if seed % 4 > 0 {
        // Code that has taken a worker over would go on after a refusal.
        extern "C" fn go_on(_: libc::c_int) {}
        let handler = go_on as extern "C" fn(libc::c_int);
        // SAFETY: the handler does nothing.
        unsafe { libc::signal(libc::SIGSYS, handler as libc::sighandler_t) };
    }
    let mut state = seed | 1;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut memory = vec![0u8; 1 << 16];
    memory[..12].copy_from_slice(b"/etc/passwd\0");
    for made in 0..400 {
        let mut argument = || match random() % 8 {
            0 => 0,
            1 => random() % 16,
            2 => u64::MAX,
            3 => 1 << (random() % 64),
            4 => others[random() as usize % others.len()],
            5 => random(),
            _ => memory.as_ptr().addr() as u64 + random() % 4096 / 8 * 8,
        };
        let arguments: [u64; 6] = std::array::from_fn(|_| argument());
        let call = (random() % 480) as i64;
        let is_end = [libc::SYS_exit, libc::SYS_exit_group, libc::SYS_pause].contains(&call);
        if is_end && made < 300 {
            continue;
        }
        let [a, b, c, d, e, f] = arguments;
        // SAFETY: none. The process may break in any way, which is the point.
        unsafe { libc::syscall(call, a, b, c, d, e, f) };
    }
    400
}

/// PROCPOOL_STORM_SECONDS makes it longer.
#[test]
fn random_system_calls_harm_nothing_outside_and_the_pool_goes_on() {
    let seconds = std::env::var("PROCPOOL_STORM_SECONDS");
    let seconds = seconds.ok().and_then(|it| it.parse().ok()).unwrap_or(4);
    let (outside, inside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let secret = outside.path().join("secret");
    fs::write(&secret, "as it was").unwrap();
    fs::write(inside.path().join("own"), "its own").unwrap();
    let mut bystander = Command::new("sleep").arg("100000").spawn().unwrap();
    let others = vec![
        std::process::id().into(),
        bystander.id().into(),
        u64::from(std::process::id()).wrapping_neg(),
    ];
    let limits = || fs::read_to_string("/proc/self/limits").unwrap();
    let before = (limits(), std::env::current_dir().unwrap(), fs::metadata(&secret).unwrap());
    let pool = Pool::builder()
        .workers(2)
        .task_timeout(std::time::Duration::from_millis(500))
        .max_memory_per_worker(512 << 20)
        .limits(Limits::new().file_size(16 << 20).core_size(0))
        .output(procpool::OutputMode::Null)
        .sandbox(Sandbox::strict().write(inside.path()))
        .build()
        .unwrap();
    let begun = std::time::Instant::now();
    let (mut ended, mut died, mut refused) = (0, 0, 0);
    while begun.elapsed().as_secs() < seconds {
        let seed = (begun.elapsed().as_nanos() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let storms = (0..20).map(|turn| (seed + turn, others.clone()));
        for outcome in pool.imap_unordered(storm, storms) {
            match outcome.map_err(|error| error.kind().clone()) {
                Ok(_) => ended += 1,
                Err(TaskErrorKind::Died { cause: DeathCause::Sandboxed { .. }, .. }) => {
                    refused += 1
                }
                Err(_) => died += 1,
            }
        }
        assert_eq!(pool.map(square, 0..100).unwrap().len(), 100);
    }
    eprintln!("{ended} ended, {refused} were refused, {died} died otherwise");
    assert!(refused > 0);
    assert_eq!(fs::read_to_string(&secret).unwrap(), "as it was");
    let after = fs::metadata(&secret).unwrap();
    assert_eq!(after.permissions(), before.2.permissions());
    assert_eq!(after.modified().unwrap(), before.2.modified().unwrap());
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    assert_eq!((limits(), std::env::current_dir().unwrap()), (before.0, before.1));
    assert!(bystander.try_wait().unwrap().is_none(), "it lives");
    bystander.kill().unwrap();
    bystander.wait().unwrap();
}

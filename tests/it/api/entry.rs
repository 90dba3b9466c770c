//! `init` and the start of workers: in programs that did other things before, and that change themselves
//! afterwards.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::support::wait_until;

/// The programs of tests/programs/entry.rs.
fn executable() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    tests.parent().unwrap().with_file_name("examples").join("procpool-test-entry")
}

/// Returns the command of one of them, and its directory.
fn program(name: &str) -> (Command, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(executable());
    command.env("PROGRAM", name).env("LOG", dir.path().join("log"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    (command, dir)
}

/// Waits for the end of a program, which must succeed. Returns what it printed.
#[track_caller]
fn succeeds(mut command: Command) -> String {
    let child = command.spawn().unwrap();
    finished(child, true)
}

#[track_caller]
fn finished(mut child: Child, well: bool) -> String {
    wait_until("the program ends", || child.try_wait().unwrap().is_some());
    let output = child.wait_with_output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(!well || output.status.success(), "{}: {text}", output.status);
    text
}

#[test]
fn files_opened_before_init_stay_open() {
    for _ in 0..5 {
        let (command, _dir) = program("files");
        succeeds(command);
    }
}

#[test]
fn init_may_be_the_first_line_of_an_async_main() {
    let (command, _dir) = program("runtime");
    succeeds(command);
}

#[test]
fn a_worker_that_calls_init_on_a_thread_does_not_continue_with_main() {
    let (command, _dir) = program("thread");
    let text = succeeds(command);
    assert!(text.contains("a thread other than the main thread"), "{text}");
    assert!(!text.contains("main goes on"), "{text}");
}

#[test]
fn a_program_with_more_privileges_than_its_user_has_no_workers() {
    let (mut command, dir) = program("privileged");
    // SAFETY: a plain system call.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("left out: it takes root to give a program another user's privileges");
        return;
    }
    let copy = dir.path().join("program");
    std::fs::copy(executable(), &copy).unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::set_permissions(&copy, PermissionsExt::from_mode(0o4755)).unwrap();
    let mut privileged = Command::new(&copy);
    privileged.uid(65_534).gid(65_534).stdout(Stdio::piped()).stderr(Stdio::piped());
    privileged.env("PROGRAM", "privileged");
    let text = succeeds(privileged);
    assert!(!text.contains("worker"), "{text}");
    // Without the privileges, the same program has workers.
    std::fs::set_permissions(&copy, PermissionsExt::from_mode(0o755)).unwrap();
    command.env("PROGRAM", "limits");
    limited(&mut command);
    succeeds(command);
}

/// Makes a program start with a soft limit of 100 open files and a hard limit of 1,000.
fn limited(command: &mut Command) {
    let limit = || {
        let limit = libc::rlimit { rlim_cur: 100, rlim_max: 1000 };
        // SAFETY: a plain system call on local data.
        match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure makes one system call.
    unsafe { command.pre_exec(limit) };
}

#[test]
fn init_raises_the_limit_of_open_files_and_tasks_have_the_one_from_before() {
    let (mut command, _dir) = program("limits");
    limited(&mut command);
    succeeds(command);
}

#[test]
fn in_a_copy_made_by_fork_every_call_is_an_error_and_the_original_goes_on() {
    let (command, _dir) = program("daemon");
    succeeds(command);
}

/// Forks in one of two ways. Returns zero in the copy.
fn fork(raw: bool) -> libc::c_int {
    // SAFETY: the copy returns from the task, which the test is about.
    unsafe {
        match raw {
            false => libc::fork(),
            true => libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) as libc::c_int,
        }
    }
}

#[test]
fn a_task_that_forks_is_answered_once_by_the_worker_and_its_copy_ends() {
    fn numbers(raw: u32) -> u32 {
        let copy = fork(raw == 1);
        if copy == 0 { 0 } else { std::process::id() }
    }
    fn text((raw, how): (bool, u8)) -> String {
        match fork(raw) {
            0 if how == 1 => panic!("the copy"),
            0 if how == 2 => "the copy".repeat(1 << 20),
            0 => "the copy".to_owned(),
            copy => copy.to_string(),
        }
    }
    let pool = procpool::Pool::new(2).unwrap();
    let pids: Vec<u32> = pool.workers().iter().map(|worker| worker.pid).collect();
    for raw in [false, true] {
        let answers = pool.map(numbers, [u32::from(raw); 100]).unwrap();
        assert!(answers.iter().all(|pid| pids.contains(pid)), "{answers:?}");
        for how in [0, 1, 2] {
            for copy in pool.imap(text, [(raw, how); 20]) {
                let copy: u32 = copy.unwrap().parse().unwrap();
                wait_until("the copy has ended", || !crate::support::is_alive(copy));
            }
        }
    }
    assert_eq!(pool.map(crate::support::square, 0..1000).unwrap().len(), 1000);
    assert_eq!(pool.stats().restarts, 0);
}

#[test]
fn a_worker_that_is_retired_while_it_starts_prints_nothing() {
    let (command, _dir) = program("drops");
    let text = succeeds(command);
    assert_eq!(text, "");
}

#[test]
fn a_process_has_its_own_exit_code_in_another_session_and_in_a_pid_namespace() {
    let (command, _dir) = program("session");
    succeeds(command);
    let (inner, _dir) = program("namespace");
    let mut namespace = Command::new("unshare");
    namespace.args(["--pid", "--fork", "--mount-proc", "--"]).arg(inner.get_program());
    namespace.env("PROGRAM", "exits").stdout(Stdio::piped()).stderr(Stdio::piped());
    let tried = Command::new("unshare").args(["--pid", "--fork", "--mount-proc", "true"]).output();
    if tried.is_ok_and(|output| output.status.success()) {
        succeeds(namespace);
    } else {
        eprintln!("left out: there may be no PID namespace here");
    }
}

#[test]
fn a_pool_in_a_library_that_is_loaded_while_a_program_runs_names_both_files() {
    let library = executable().with_file_name("libprocpool_test_library.so");
    let path = std::ffi::CString::new(library.as_os_str().as_encoded_bytes()).unwrap();
    let mut text = [0u8; 4096];
    // SAFETY: the library is built from tests/programs/library.rs, and its function has this type.
    let len = unsafe {
        let handle = libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL);
        assert!(!handle.is_null(), "{path:?} can't be loaded");
        let function = libc::dlsym(handle, c"procpool_test_library".as_ptr());
        assert!(!function.is_null());
        let function = std::mem::transmute::<
            *mut libc::c_void,
            unsafe extern "C" fn(*mut u8, usize) -> usize,
        >(function);
        function(text.as_mut_ptr(), text.len())
    };
    let text = String::from_utf8_lossy(&text[..len]);
    let program = std::env::current_exe().unwrap();
    assert_eq!(text.lines().count(), 4, "{text}");
    for error in text.lines() {
        assert!(error.contains("libprocpool_test_library.so"), "{error}");
        assert!(error.contains(program.to_str().unwrap()), "{error}");
    }
}

#[test]
fn a_pool_in_a_program_started_by_the_loader_names_both_files() {
    let (inner, _dir) = program("loader");
    // The first interpreter in the file is that of its program header.
    let image = std::fs::read(executable()).unwrap();
    let text = String::from_utf8_lossy(&image[..4096.min(image.len())]).into_owned();
    let interpreter = text.split('\0').find(|part| part.starts_with("/lib"));
    let Some(interpreter) = interpreter else {
        eprintln!("left out: the program is linked statically");
        return;
    };
    let mut loaded = Command::new(interpreter);
    loaded.arg(inner.get_program()).env("PROGRAM", "loader");
    loaded.stdout(Stdio::piped()).stderr(Stdio::piped());
    succeeds(loaded);
}

#[test]
fn a_missing_directory_is_named() {
    let (command, _dir) = program("gone");
    succeeds(command);
}

/// Runs a program to which one system call is refused. It must work, or name the call.
#[track_caller]
fn without(name: &str, number: libc::c_long, errno: i32) -> Result<(), String> {
    let (mut command, _dir) = program("refused");
    command.env("CALL", number.to_string()).env("ERRNO", errno.to_string()).env("NAME", name);
    // If all of its waits fail, it runs forever.
    let text = finished(command.spawn().unwrap(), false);
    let mut lines = text.lines();
    let error = lines.find(|line| line.starts_with(&format!("{name}: ")));
    let is_named = |error: &str| {
        let said = error.split_once(": ").map_or("", |(_, said)| said);
        said.contains(name) || text.lines().any(|line| line != error && line.contains(name))
    };
    let is_fine = error.is_none_or(is_named) && !text.contains("panicked");
    if is_fine { Ok(()) } else { Err(format!("{name} ({errno}): {text}")) }
}

#[test]
fn a_refused_system_call_is_replaced_or_named() {
    // Without `poll`, any Rust program aborts before `main`.
    let calls = [
        ("pidfd_open", libc::SYS_pidfd_open),
        ("pidfd_send_signal", libc::SYS_pidfd_send_signal),
        ("eventfd2", libc::SYS_eventfd2),
        ("ppoll", libc::SYS_ppoll),
        ("setpgid", libc::SYS_setpgid),
        ("fcntl", libc::SYS_fcntl),
        ("prctl", libc::SYS_prctl),
        ("clone3", libc::SYS_clone3),
        ("memfd_create", libc::SYS_memfd_create),
        ("pipe2", libc::SYS_pipe2),
        ("waitid", libc::SYS_waitid),
        ("prlimit64", libc::SYS_prlimit64),
        ("close_range", libc::SYS_close_range),
        ("madvise", libc::SYS_madvise),
    ];
    let errors = [libc::EPERM, libc::ENOSYS, libc::EACCES];
    let tries = calls.iter().flat_map(|call| errors.map(|errno| (call, errno)));
    let failed: Vec<String> =
        tries.filter_map(|((name, number), errno)| without(name, *number, errno).err()).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

//! A task overwrites memory, stops its worker, or hangs outside of any limit: the caller gets a result or an
//! error in time, and the parent is not harmed.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::{SOON, SideEffects, alone, kill, run_alone, square, wait_until};
use procpool::shared::SharedSlice;
use procpool::{OutputMode, Pool, Process, TaskOptions, WorkerState};
use serde::{Deserialize, Serialize};

/// A number above the worker's own descriptors.
const LAST: i32 = 1100;

/// Sends `bytes`, and with them a socket if `with_socket`, to every socket that this process has.
fn send_to_all(bytes: &[u8], with_socket: bool) {
    #[repr(align(8))]
    struct Control([u8; 64]);
    let mut pair = [0; 2];
    // SAFETY: plain system calls on local data.
    unsafe {
        assert_eq!(libc::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET, 0, pair.as_mut_ptr()), 0);
        for fd in 3..LAST {
            let mut part =
                libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
            let mut control = Control([0; 64]);
            let mut message: libc::msghdr = std::mem::zeroed();
            (message.msg_iov, message.msg_iovlen) = (&mut part, 1);
            if with_socket {
                message.msg_control = control.0.as_mut_ptr().cast();
                message.msg_controllen = libc::CMSG_SPACE(4) as _;
                let head = libc::CMSG_FIRSTHDR(&message);
                (*head).cmsg_level = libc::SOL_SOCKET;
                (*head).cmsg_type = libc::SCM_RIGHTS;
                (*head).cmsg_len = libc::CMSG_LEN(4) as _;
                libc::CMSG_DATA(head).cast::<i32>().write_unaligned(pair[0]);
            }
            if fd != pair[0] && fd != pair[1] {
                libc::sendmsg(fd, &message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL);
            }
        }
        libc::close(pair[0]);
        libc::close(pair[1]);
    }
}

#[test]
fn a_task_that_writes_to_all_its_descriptors_has_an_outcome_and_harms_no_parent() {
    fn scribble(x: u64) -> u64 {
        send_to_all(b"hello, world\n", false);
        send_to_all(b"", false);
        send_to_all(&[0; 24], true);
        // Like the first packet of ipc-channel: its length, and that of the message.
        for total in [1u64 << 40, 1 << 20, u64::MAX] {
            send_to_all(&[24u64.to_ne_bytes(), total.to_ne_bytes(), [0; 8]].concat(), true);
        }
        send_to_all(&[255; 60_000], false);
        x
    }
    let pool = Pool::builder().workers(2).task_timeout(Duration::from_secs(20)).build().unwrap();
    for x in 0..10 {
        let mut task = pool.apply_async(scribble, x);
        assert_eq!(task.get_timeout(SOON).expect("an outcome in time"), Ok(x));
    }
    assert_eq!(pool.map(square, 0..100), Ok((0..100).map(square).collect()));
}

#[test]
fn a_task_that_closes_all_low_descriptors_is_answered_and_so_is_the_next() {
    fn close_all(x: u64) -> u64 {
        // SAFETY: the worker's own descriptors have higher numbers.
        unsafe { libc::close_range(3, 511, 0) };
        x
    }
    let pool = Pool::new(1).unwrap();
    for x in 0..4 {
        assert_eq!(pool.apply(close_all, x), Ok(x));
    }
}

#[test]
fn a_stopped_idle_worker_blocks_no_task() {
    for workers in [1, 2] {
        let pool = Pool::new(workers).unwrap();
        let options = TaskOptions::default().timeout(Duration::from_millis(300));
        let limited = pool.with_options(options);
        let pids: Vec<u32> =
            pool.broadcast(|()| std::process::id(), ()).into_iter().map(Result::unwrap).collect();
        kill(pids[0], libc::SIGSTOP);
        let begun = Instant::now();
        for report in limited.imap(square, 0..8).reports() {
            assert_eq!((report.result, report.attempt), (Ok(square(report.id)), 1));
        }
        assert!(begun.elapsed() < SOON);
        assert_eq!(pool.map(square, 0..1000), Ok((0..1000).map(square).collect()));
    }
}

#[test]
fn each_task_sent_to_a_stopped_worker_has_its_outcome_in_time() {
    let pool = Pool::new(1).unwrap();
    let len = |bytes: Vec<u8>| bytes.len();
    for _ in 0..3 {
        kill(pool.workers()[0].pid, libc::SIGSTOP);
        // Each nearly fills a frame. Together they go through shared memory.
        let mut tasks: Vec<_> = (0..20).map(|_| pool.apply_async(len, vec![0; 30_000])).collect();
        for task in &mut tasks {
            assert_eq!(task.get_timeout(SOON).expect("an outcome in time"), Ok(30_000));
        }
    }
}

#[test]
fn a_stopped_idle_worker_blocks_no_call_with_a_context() {
    /// More frames than fit into a socket's buffer.
    const CALLS: usize = 600;
    let pool = Pool::builder().workers(1).chunk_size(1).build().unwrap();
    let (release, effects) = (std::sync::Barrier::new(CALLS + 1), SideEffects::new());
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for call in 0..CALLS as u64 {
            let (pool, release, effects) = (&pool, &release, &effects);
            scope.spawn(move || {
                // Blocks until there is no other item.
                let items = [call]
                    .into_iter()
                    .chain(std::iter::once_with(|| release.wait()).filter_map(|_| None));
                let note = |effects: &SideEffects, call: u64| {
                    effects.note(call);
                    call
                };
                assert_eq!(pool.map_with(effects.clone(), note, items), Ok(vec![call]));
            });
        }
        wait_until("all have run one item", || effects.noted().len() == CALLS);
        wait_until("the worker is idle", || pool.workers()[0].state == WorkerState::Idle);
        kill(pool.workers()[0].pid, libc::SIGSTOP);
        release.wait();
    });
    assert!(begun.elapsed() < 2 * SOON);
    assert_eq!(pool.apply(square, 3), Ok(9));
}

/// A value whose drop blocks forever in a worker.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Stays(u64);

impl Drop for Stays {
    fn drop(&mut self) {
        let is_worker = |argument: String| argument.starts_with("--procpool-worker=");
        while std::env::args().nth(1).is_some_and(is_worker) {
            std::thread::park();
        }
    }
}

#[test]
fn a_result_is_delivered_although_its_worker_hangs_after_it() {
    let pool = Pool::new(1).unwrap();
    let mut task = pool.apply_async(Stays, 7);
    assert_eq!(task.get_timeout(SOON).expect("an outcome in time"), Ok(Stays(7)));
    // Its worker is replaced.
    assert_eq!(pool.apply(square, 3), Ok(9));
    let mut process = Process::spawn(Stays, 7).unwrap();
    assert_eq!(process.join_timeout(SOON).expect("an end in time"), Ok(Stays(7)));
}

#[test]
fn results_that_are_not_taken_yet_use_no_descriptors() {
    alone!("untaken_results");
}

#[test]
#[ignore = "run by another test, alone"]
fn untaken_results() {
    const RESULTS: u64 = 400;
    let pool = Pool::new(2).unwrap();
    let limit = libc::rlimit { rlim_cur: 128, rlim_max: 128 };
    // SAFETY: a plain system call on local data.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0);
    let large = |x: u64| vec![x; 40_000];
    let mut tasks: Vec<_> = (0..RESULTS).map(|x| pool.apply_async(large, x)).collect();
    wait_until("all are done", || pool.stats().done == RESULTS);
    for (x, task) in (0..).zip(&mut tasks) {
        assert_eq!(task.get_timeout(SOON).unwrap(), Ok(vec![x; 40_000]));
    }
}

#[test]
fn no_temporary_directory_is_needed() {
    run_alone(module_path!(), "a_pool_at_work", Path::new("/nonexistent"));
    run_alone(module_path!(), "a_pool_at_work", Path::new("/proc"));
}

#[test]
#[ignore = "run by other tests, alone"]
fn a_pool_at_work() {
    let pool = Pool::builder().workers(2).output(OutputMode::Capture).build().unwrap();
    assert_eq!(pool.map(square, 0..100), Ok((0..100).map(square).collect()));
    assert_eq!(pool.apply(|bytes: Vec<u8>| bytes, vec![7; 1 << 20]), Ok(vec![7; 1 << 20]));
}

#[test]
fn a_worker_takes_at_most_four_descriptors() {
    alone!("descriptors_of_workers");
}

#[test]
#[ignore = "run by another test, alone"]
fn descriptors_of_workers() {
    const WORKERS: usize = 16;
    for (output, most) in [(OutputMode::Inherit, 3), (OutputMode::Capture, 4)] {
        let count = || crate::support::left_behind()[0];
        let of = |workers| Pool::builder().workers(workers).output(output).build().unwrap();
        let before = count();
        let one = of(1);
        one.broadcast(square, 2);
        let with_one = count();
        let many = of(1 + WORKERS);
        many.broadcast(square, 2);
        let each = (count() - with_one - (with_one - before)).div_ceil(WORKERS);
        assert!(each <= most, "{each} descriptors for each worker");
    }
}

#[test]
fn a_handle_reaches_a_worker_of_a_process_that_has_changed_its_user() {
    // SAFETY: a plain system call.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("left out: only root can change its user");
        return;
    }
    alone!("a_slice_after_setuid");
}

#[test]
#[ignore = "run by another test, alone"]
fn a_slice_after_setuid() {
    const NOBODY: libc::uid_t = 65534;
    // SAFETY: plain system calls; the process has one purpose.
    unsafe {
        assert_eq!(libc::setgid(NOBODY), 0);
        assert_eq!(libc::setuid(NOBODY), 0);
        assert_eq!(libc::prctl(libc::PR_GET_DUMPABLE), 0, "this process can't be looked into");
    }
    let pool = Pool::new(2).unwrap();
    let slice = SharedSlice::new([1u64, 2, 3]).unwrap();
    let sum = |slice: SharedSlice<u64>| slice.iter().sum::<u64>();
    for _ in 0..4 {
        assert_eq!(pool.apply(sum, slice.clone()), Ok(6));
    }
}

#[test]
fn a_wait_for_a_stopped_worker_ends_with_the_pool() {
    let pool = Pool::new(1).unwrap();
    let pid = pool.apply(|()| std::process::id(), ()).unwrap();
    kill(pid, libc::SIGSTOP);
    let begun = Instant::now();
    let mut task = pool.apply_async(square, 2);
    pool.terminate();
    assert!(task.get_timeout(SOON).expect("an outcome").is_err());
    assert!(begun.elapsed() < SOON);
}

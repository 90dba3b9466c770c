//! Basic calls: each result is returned once and in the right place, whatever the sizes.

use std::collections::{HashMap, HashSet};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use procpool::{Pool, TaskErrorKind, TaskOptions, WorkerState};

const SOON: Duration = Duration::from_secs(20);

fn square(x: u64) -> u64 {
    x * x
}

fn sleepy(millis: u64) -> u64 {
    std::thread::sleep(Duration::from_millis(millis));
    millis
}

#[test]
fn apply_returns_f_of_x() {
    let pool = Pool::new(2).unwrap();
    assert_eq!(pool.apply(square, 7), Ok(49));
    assert_eq!(
        pool.apply(|(a, b): (String, u8)| format!("{a}{b}"), ("x".to_owned(), 1)).unwrap(),
        "x1"
    );
    assert_eq!(pool.apply(|()| (), ()), Ok(()));
}

#[test]
fn a_task_runs_in_another_process() {
    let pool = Pool::new(2).unwrap();
    let pid = pool.apply(|()| std::process::id(), ()).unwrap();
    assert_ne!(pid, std::process::id());
    assert!(pool.workers().iter().any(|worker| worker.pid == pid));
}

#[test]
fn a_function_of_unknown_speed_is_spread_over_idle_workers() {
    let pid = |_: u64| std::process::id();
    let wait_until_idle = |pool: &Pool| {
        let start = Instant::now();
        while pool.workers().iter().any(|worker| worker.state != WorkerState::Idle) {
            assert!(start.elapsed() < SOON, "{:?}", pool.workers());
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    for turn in 0..50 {
        let pool = Pool::new(4).unwrap();
        wait_until_idle(&pool);
        // Warm workers finish an item before another worker is woken.
        pool.map(square, 0..1000).unwrap();
        wait_until_idle(&pool);
        let pids = match turn % 2 {
            0 => pool.map(pid, 0..6).unwrap(),
            _ => pool.imap(pid, 0..6).collect::<Result<Vec<_>, _>>().unwrap(),
        };
        let distinct: HashSet<_> = pids.iter().collect();
        assert!(distinct.len() >= 3, "{turn}: {pids:?}");
    }
}

#[test]
fn map_keeps_input_order_whatever_finishes_first() {
    let pool = Pool::new(4).unwrap();
    let delays = [30, 1, 20, 0, 10, 5];
    assert_eq!(pool.map(sleepy, delays).unwrap(), delays);
    let many: Vec<u64> = (0..20_000).collect();
    let squares: Vec<u64> = many.iter().map(|x| x * x).collect();
    assert_eq!(pool.map(square, many.iter().copied()).unwrap(), squares);
    assert_eq!(pool.map_async(square, many).get().unwrap(), squares);
}

#[test]
fn imap_keeps_input_order_and_imap_unordered_yields_each_exactly_once() {
    let pool = Pool::new(4).unwrap();
    let squares: Vec<u64> = (0..5000).map(square).collect();
    let ordered: Result<Vec<u64>, _> = pool.imap(square, 0..5000).collect();
    assert_eq!(ordered.unwrap(), squares);
    let unordered: Result<Vec<u64>, _> = pool.imap_unordered(square, 0..5000).collect();
    let mut unordered = unordered.unwrap();
    unordered.sort_unstable();
    assert_eq!(unordered, squares);
}

#[test]
fn empty_input_returns_at_once_from_every_call() {
    let pool = Pool::new(2).unwrap();
    let none = || std::iter::empty::<u64>();
    assert!(pool.map(square, none()).unwrap().is_empty());
    assert!(pool.map_async(square, none()).get().unwrap().is_empty());
    assert_eq!(pool.imap(square, none()).count(), 0);
    assert_eq!(pool.imap_unordered(square, none()).count(), 0);
}

#[test]
fn any_chunk_size_returns_the_same_results() {
    let pool = Pool::new(3).unwrap();
    let expected: Vec<u64> = (0..100).map(square).collect();
    for size in [1, 7, 100, 1000, usize::MAX] {
        let pool = pool.with_options(TaskOptions::new().chunk_size(size));
        assert_eq!(pool.map(square, 0..100).unwrap(), expected, "chunk size {size}");
        let streamed: Result<Vec<_>, _> = pool.imap(square, 0..100).collect();
        assert_eq!(streamed.unwrap(), expected, "chunk size {size}");
    }
}

#[test]
fn sixty_four_workers_on_few_cpus_work() {
    let pool = Pool::new(64).unwrap();
    let pids: HashSet<u32> =
        pool.imap(sleepy, [20; 256]).reports().map(|report| report.pid().unwrap()).collect();
    assert!(pids.len() > 32, "{} workers took part", pids.len());
    assert_eq!(pool.map(square, 0..1000).unwrap(), (0..1000).map(square).collect::<Vec<_>>());
}

#[test]
fn a_timed_out_wait_does_not_stop_the_task() {
    let pool = Pool::new(1).unwrap();
    let mut task = pool.apply_async(sleepy, 200);
    assert_eq!(task.get_timeout(Duration::from_millis(1)), None);
    assert!(!task.is_ready());
    assert_eq!(task.get_timeout(SOON), Some(Ok(200)));
    assert!(pool.apply_async(sleepy, 0).get_timeout(Duration::MAX).is_some());
}

#[test]
fn a_result_is_returned_once_and_then_an_error_says_so() {
    let pool = Pool::new(1).unwrap();
    let mut one = pool.apply_async(square, 3);
    assert_eq!(one.get_timeout(SOON), Some(Ok(9)));
    assert_eq!(one.get_timeout(SOON).unwrap().unwrap_err().kind(), &TaskErrorKind::AlreadyTaken);
    assert_eq!(one.get().unwrap_err().kind(), &TaskErrorKind::AlreadyTaken);
    let mut many = pool.map_async(square, 0..3);
    assert_eq!(many.get_timeout(SOON), Some(Ok(vec![0, 1, 4])));
    assert_eq!(many.get().unwrap_err().kind(), &TaskErrorKind::AlreadyTaken);
}

#[test]
fn time_limits_may_have_any_length() {
    let long = Duration::MAX;
    let pool = Pool::builder()
        .workers(2)
        .task_timeout(long)
        .start_timeout(long)
        .idle_timeout(long)
        .kill_grace(long)
        .build()
        .unwrap();
    assert_eq!(pool.map(square, 0..100).unwrap().len(), 100);
    pool.join();
}

#[test]
fn a_chunk_size_that_is_set_is_kept() {
    let sizes = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = std::sync::Arc::clone(&sizes);
    let listen = move |event: &procpool::Event| {
        if let procpool::EventKind::Assigned { tasks, .. } = event.kind {
            seen.lock().unwrap().push(tasks);
        }
    };
    let pool = Pool::builder().workers(1).chunk_size(50).on_event(listen).build().unwrap();
    assert_eq!(pool.map(sleepy, [1; 200]).unwrap().len(), 200);
    pool.join();
    assert_eq!(*sizes.lock().unwrap(), [50; 4]);
}

#[test]
fn a_callback_runs_once_and_its_panic_harms_nothing() {
    let pool = Pool::new(2).unwrap();
    let (sender, receiver) = channel();
    for x in 0..10 {
        let sender = sender.clone();
        pool.apply_async(square, x).on_done(move |result| {
            sender.send(result.unwrap()).unwrap();
            assert!(x != 3, "a callback that panics");
        });
    }
    let mut seen: Vec<u64> = (0..10).map(|_| receiver.recv_timeout(SOON).unwrap()).collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..10).map(square).collect::<Vec<_>>());
    drop(sender);
    assert!(receiver.recv_timeout(SOON).is_err(), "each is called once");
    assert_eq!(pool.apply(square, 5), Ok(25));
}

#[test]
fn a_callback_may_use_the_pool() {
    let pool = Pool::new(1).unwrap();
    let (sender, receiver) = channel();
    let again = pool.clone();
    pool.apply_async(square, 3).on_done(move |result| {
        sender.send(again.apply(square, result.unwrap()).unwrap()).unwrap();
    });
    assert_eq!(receiver.recv_timeout(SOON).unwrap(), 81);
}

#[test]
fn submitting_after_close_or_terminate_is_refused() {
    for terminate in [false, true] {
        let pool = Pool::new(1).unwrap();
        if terminate {
            pool.terminate()
        } else {
            pool.close()
        }
        assert_eq!(pool.apply(square, 1).unwrap_err().kind(), &TaskErrorKind::Closed);
        assert_eq!(pool.apply_async(square, 1).get().unwrap_err().kind(), &TaskErrorKind::Closed);
        assert_eq!(pool.map(square, 0..9).unwrap_err().kind(), &TaskErrorKind::Closed);
        assert_eq!(pool.map_async(square, 0..9).get().unwrap_err().kind(), &TaskErrorKind::Closed);
        assert!(pool.imap(square, 0..9).all(|result| result.is_err()));
        pool.join();
    }
}

#[test]
fn many_threads_submit_at_once_and_all_is_delivered() {
    let pool = Pool::new(3).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8u64 {
            let pool = pool.clone();
            scope.spawn(move || {
                let tasks: Vec<_> =
                    (0..500).map(|x| pool.apply_async(square, thread * 1000 + x)).collect();
                for (x, task) in tasks.into_iter().enumerate() {
                    assert_eq!(task.get(), Ok(square(thread * 1000 + x as u64)));
                    if x % 50 == 0 {
                        assert_eq!(pool.apply(square, 9), Ok(81));
                        assert_eq!(pool.map(square, 0..10).unwrap().len(), 10);
                    }
                }
            });
        }
    });
    let stats = pool.stats();
    assert_eq!((stats.queued, stats.running, stats.failed), (0, 0, 0));
    assert_eq!(stats.done, 8 * (500 + 10 * 11));
}

#[test]
fn an_err_of_a_task_is_a_result() {
    let pool = Pool::new(1).unwrap();
    let parse = |text: String| text.parse::<i32>().map_err(|error| error.to_string());
    assert_eq!(pool.apply(parse, "12".to_owned()), Ok(Ok(12)));
    assert!(pool.apply(parse, "x".to_owned()).unwrap().is_err());
}

#[test]
fn generic_functions_and_those_of_other_crates_can_be_sent() {
    fn twice<T: Clone>(value: T) -> (T, T) {
        (value.clone(), value)
    }
    let pool = Pool::new(1).unwrap();
    assert_eq!(pool.apply(twice::<u8>, 1), Ok((1, 1)));
    assert_eq!(pool.apply(twice::<String>, "a".to_owned()).unwrap().1, "a");
    assert_eq!(pool.apply(f64::sqrt, 9.0), Ok(3.0));
}

#[test]
fn a_report_has_the_worker_the_times_and_the_id() {
    let pool = Pool::new(2).unwrap();
    let reports: Vec<_> = pool.imap(sleepy, [15, 0, 15]).reports().collect();
    let pids: HashMap<usize, u32> =
        pool.workers().iter().map(|worker| (worker.slot, worker.pid)).collect();
    for (id, report) in reports.iter().enumerate() {
        assert_eq!(report.id, id as u64);
        assert_eq!(report.attempt, 1);
        assert_eq!(pids[&report.worker.unwrap().slot], report.pid().unwrap());
    }
    assert!(reports[0].elapsed >= Duration::from_millis(15), "{:?}", reports[0].elapsed);
    assert!(reports[1].elapsed < Duration::from_millis(15), "{:?}", reports[1].elapsed);
    let report = pool.apply_async(sleepy, 1).report();
    assert_eq!((report.id, report.result), (0, Ok(1)));
}

#[test]
fn a_task_is_a_future() {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Wake, Waker};

    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.unpark();
        }
    }
    let pool = Pool::new(1).unwrap();
    let mut task = pin!(pool.apply_async(sleepy, 20));
    let waker = Waker::from(std::sync::Arc::new(Unpark(std::thread::current())));
    let result = loop {
        match task.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(result) => break result,
            Poll::Pending => std::thread::park_timeout(SOON),
        }
    };
    assert_eq!(result, Ok(20));
}

#[test]
fn the_initializer_of_a_worker_runs_in_that_worker_even_if_others_are_idle() {
    for _ in 0..30 {
        let pool = Pool::builder().workers(8).initializer(|x: u32| x, 7).build().unwrap();
        // Ready workers are idle while the others are starting.
        let deadline = Instant::now() + SOON;
        while pool.workers().iter().any(|worker| worker.state != WorkerState::Idle) {
            assert!(Instant::now() < deadline, "the workers are ready: {:?}", pool.workers());
            std::thread::yield_now();
        }
        let state = |_: u32| procpool::with_state(|x: &mut u32| *x);
        let pool = pool.with_options(TaskOptions::new().chunk_size(1));
        assert_eq!(pool.map(state, 0..200).unwrap(), [Some(7); 200]);
    }
}

#[test]
fn the_initializer_runs_in_each_worker_before_its_first_task() {
    fn start(base: u64) -> u64 {
        base
    }
    fn add(x: u64) -> u64 {
        procpool::with_state(|base: &mut u64| *base + x).unwrap()
    }
    let pool = Pool::builder().workers(3).initializer(start, 100).build().unwrap();
    assert_eq!(pool.map(add, 0..50).unwrap(), (100..150).collect::<Vec<_>>());
}

#[test]
fn environment_and_directory_are_as_set() {
    let dir = tempfile::tempdir().unwrap();
    let pool = Pool::builder()
        .workers(2)
        .env("PROCPOOL_TEST_A", "all")
        .env_per_worker(|slot| vec![("PROCPOOL_TEST_B".into(), slot.to_string().into())])
        .current_dir(dir.path())
        .build()
        .unwrap();
    let look = |()| {
        let var = |name| std::env::var(name).unwrap_or_default();
        let dir = std::env::current_dir().unwrap().to_string_lossy().into_owned();
        (
            var("PROCPOOL_TEST_A"),
            var("PROCPOOL_TEST_B"),
            dir,
            std::env::vars().any(|v| v.0 == "PROCPOOL_WORKER"),
        )
    };
    for report in pool.imap(look, [(); 8]).reports() {
        let (all, own, cwd, marked) = report.result.unwrap();
        assert_eq!((all.as_str(), own), ("all", report.worker.unwrap().slot.to_string()));
        assert_eq!(cwd, dir.path().canonicalize().unwrap().to_string_lossy());
        assert!(!marked, "what a task starts must not take itself for a worker");
    }
}

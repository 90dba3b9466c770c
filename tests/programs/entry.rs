//! Programs for tests/it/api/entry.rs: what they do before they become able to have pools, and to themselves
//! after. Which one it is stands in the environment, where the workers find it too. A failure is a
//! panic, and an exit code that isn't zero.

use std::fs::{self, File};
use std::io::Write as _;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use procpool::{Error, Pool, Process, StartError, StartMethod, TaskErrorKind};

/// How long anything here may take.
const SOON: Duration = Duration::from_secs(30);

static LOG: Mutex<Option<File>> = Mutex::new(None);

fn log(line: &str) {
    let mut log = LOG.lock().expect("the log");
    // At once, since several processes write to it.
    log.as_mut().expect("a log").write_all(format!("{line}\n").as_bytes()).expect("a line");
}

/// Of a worker as of its parent.
fn open_log() {
    let path = std::env::var_os("LOG").expect("a name for the log");
    let file = File::options().create(true).append(true).open(path);
    *LOG.lock().expect("the log") = Some(file.expect("a log"));
}

fn main() {
    match std::env::var("PROGRAM").expect("which program to be").as_str() {
        "files" => files(),
        "runtime" => runtime(),
        "thread" => thread(),
        "privileged" => privileged(),
        "limits" => limits(),
        "daemon" => daemon(),
        "drops" => drops(),
        "session" => session(),
        "refused" => refused(),
        "gone" => gone(),
        "loader" => loader(),
        "exits" => exits(),
        other => panic!("there is no {other:?}"),
    }
}

/// It has files open before `init`, and a thread that goes on opening and closing some.
fn files() {
    open_log();
    let (mut reader, mut writer) = std::io::pipe().expect("a pipe");
    std::thread::spawn(|| {
        loop {
            // An error is a panic of this thread, which the log tells.
            if let Err(error) = File::open("/dev/null").and_then(|file| file.metadata()) {
                log(&format!("a thread: {error}"));
            }
            std::thread::yield_now();
        }
    });
    procpool::init();
    writer.write_all(b"x").expect("room in the pipe");
    std::io::Read::read_exact(&mut reader, &mut [0]).expect("what was written");

    /// Writes a file of its own and logs it.
    fn save((path, x): (std::path::PathBuf, u32)) -> std::io::Result<String> {
        let mut file = File::create(&path)?;
        log(&format!("saving {x}"));
        write!(file, "data {x}")?;
        drop(file);
        fs::read_to_string(path)
    }
    let pool = executing_pool();
    let path = std::env::var("LOG").expect("the log's name");
    let items = (0..100).map(|x| (format!("{path}.{x}").into(), x));
    let saved = pool.map(|item| save(item).map_err(|error| error.to_string()), items);
    for (x, data) in saved.expect("answers").into_iter().enumerate() {
        assert_eq!(data, Ok(format!("data {x}")));
    }
    let log = fs::read_to_string(path).expect("the log");
    assert_eq!(log.lines().filter(|line| line.starts_with("saving ")).count(), 100, "{log}");
    assert!(!log.contains("a thread"), "{log}");
}

/// Of programs whose threads run before `init`: a template could not be forked.
fn executing_pool() -> Pool {
    Pool::builder().start_method(StartMethod::Spawn).workers(2).build().expect("a pool")
}

/// An async program whose first line is `init`.
fn runtime() {
    async fn run() {
        procpool::init();
        let pool = executing_pool();
        let squares = pool.map_async(|x: u64| x * x, 0..1000).await.expect("answers");
        assert_eq!(squares, (0..1000).map(|x| x * x).collect::<Vec<u64>>());

        fn doubled(x: u32) -> u32 {
            let runtime = tokio::runtime::Runtime::new().expect("a runtime");
            runtime.block_on(async move { tokio::spawn(async move { x * 2 }).await }).expect("two")
        }
        // The worker is inside of `block_on`, too.
        let error = pool.apply_async(doubled, 21).await.expect_err("a runtime within another");
        assert!(matches!(error.kind(), TaskErrorKind::Panicked { .. }), "{error}");
        // On a thread of its own, there is no other.
        let on_a_thread = |x: u32| std::thread::spawn(move || doubled(x)).join().map_err(drop);
        assert_eq!(pool.apply_async(on_a_thread, 21).await, Ok(Ok(42)));
        // The runtime that the worker has begun as is whole, and its threads run.
        let on_the_outer = |x: u32| {
            let outer = tokio::runtime::Handle::current();
            tokio::task::block_in_place(|| {
                outer.block_on(async move {
                    let connected = async {
                        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
                        let to = listener.local_addr()?;
                        let _stream = tokio::net::TcpStream::connect(to).await?;
                        listener.accept().await
                    };
                    connected.await.map(|_| x * 2).map_err(|error| error.to_string())
                })
            })
        };
        assert_eq!(pool.apply_async(on_the_outer, 21).await, Ok(Ok(42)));
    }
    // As `#[tokio::main]` does it.
    tokio::runtime::Runtime::new().expect("a runtime").block_on(run());
}

/// A worker that would go on with `main` ends instead.
fn thread() {
    if std::env::args().any(|argument| argument.starts_with("--procpool-worker")) {
        std::thread::spawn(procpool::init).join().expect("init");
        unreachable!("main goes on in a worker");
    }
    procpool::init();
    let error = Pool::new(1).map(drop);
    assert!(matches!(error, Err(Error::Start(StartError::Died(_)))), "{error:?}");
}

/// Run with the privileges of another user.
fn privileged() {
    procpool::init();
    let error = Pool::new(1).map(drop);
    assert!(matches!(error, Err(Error::Privileged)), "{error:?}");
    let error = Process::spawn(|()| (), ()).map(drop);
    assert!(matches!(error, Err(Error::Privileged)), "{error:?}");
}

/// The limit of open files is raised, and for tasks and what they start it isn't.
fn limits() {
    fn soft() -> u64 {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: writes to a local.
        unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
        limit.rlim_cur
    }
    procpool::init();
    let pool = Pool::new(1).expect("a pool");
    assert_eq!(soft(), 1000, "raised to the hard limit");
    assert_eq!(pool.apply(|()| soft(), ()), Ok(100), "as the program was started with");
}

/// Forks; returns whether this is the copy, of which the original has made sure that it ends well.
fn fork() -> bool {
    // SAFETY: the copy goes on with what this test is about.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork");
    if pid == 0 {
        return true;
    }
    let (mut status, begun) = (0, Instant::now());
    // SAFETY: writes to a local.
    while unsafe { libc::waitpid(pid, &mut status, libc::WNOHANG) } == 0 {
        if begun.elapsed() > SOON {
            // SAFETY: a plain system call.
            unsafe { libc::kill(pid, libc::SIGKILL) };
            panic!("the copy hangs");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(status, 0, "the copy has failed");
    false
}

/// Makes itself a daemon with a pool that is at work.
fn daemon() {
    procpool::init();
    let owner = std::process::id();
    let pool = Pool::new(2).expect("a pool");
    let slow = |x: u64| {
        std::thread::sleep(Duration::from_millis(50));
        x
    };
    let mut before = pool.map_async(slow, 0..8);
    let mut results = pool.imap(slow, 0..100);
    assert_eq!(results.next(), Some(Ok(0)));
    let waited = |x| pool.apply_async(slow, x);
    let mut completed = procpool::as_completed((0..4).map(waited).collect::<Vec<_>>());
    completed.next().expect("the first").get().expect("a number");
    let pending: Vec<_> = (0..4).map(waited).collect();
    let shared = procpool::shared::SharedValue::new(1u64).expect("a value");
    let mut process = Process::spawn(slow, 1).expect("a process");
    // Threads that use the pool hold its locks now and then.
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let users: Vec<_> = (0..4)
        .map(|_| {
            let (pool, stop) = (pool.clone(), stop.clone());
            std::thread::spawn(move || {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    assert_eq!(pool.apply(|x: u64| x, 7), Ok(7));
                    assert_eq!(pool.apply(|x: Vec<u8>| x.len(), vec![0; 100_000]), Ok(100_000));
                    procpool::shared::SharedValue::new(0u64).expect("a value");
                    pool.stats();
                }
            })
        })
        .collect();
    for _ in 0..20 {
        if !fork() {
            continue;
        }
        #[track_caller]
        fn refused<T: std::fmt::Debug>(result: Result<T, procpool::TaskError>, owner: u32) {
            let error = result.expect_err("a copy has no workers");
            assert_eq!(error.kind(), &TaskErrorKind::Forked { owner });
            assert!(error.to_string().contains(&format!("PID {owner}, which forked: build")));
        }
        refused(pool.apply(slow, 1), owner);
        refused(pool.apply(|x: Vec<u8>| x.len(), vec![0; 1 << 20]), owner);
        refused(pool.map(slow, 0..10), owner);
        refused(pool.map_with(1, |_, x: u64| x, 0..10), owner);
        refused(pool.map_init(|| 1, |_, x: u64| x, 0..10), owner);
        refused(pool.apply_async(slow, 1).get(), owner);
        refused(pool.map_async(slow, 0..10).get(), owner);
        assert_eq!(pool.broadcast(slow, 1).len(), 2);
        pool.broadcast(slow, 1).into_iter().for_each(|result| refused(result, owner));
        let mut fresh = pool.imap_unordered(slow, 0..10);
        refused(fresh.next().expect("one error"), owner);
        assert_eq!(fresh.next(), None);
        refused(results.next().expect("one error"), owner);
        assert_eq!(results.next(), None);
        for left in (0..3).rev() {
            refused(completed.next_timeout(SOON).expect("a task").get(), owner);
            assert_eq!(completed.is_empty(), left == 0);
        }
        assert!(completed.next().is_none());
        assert!(procpool::wait(&pending, procpool::WaitFor::All, Some(SOON)));
        procpool::as_completed(pending).for_each(|task| refused(task.get(), owner));
        assert!(before.is_ready(), "nothing is to be waited for");
        refused(before.get_timeout(SOON).expect("an error"), owner);
        refused(before.get(), owner);
        let (sender, called) = std::sync::mpsc::channel();
        pool.apply_async(slow, 1).on_done(move |result| sender.send(result).expect("a test"));
        refused(called.recv_timeout(SOON).expect("a call"), owner);
        refused(process.join_timeout(SOON).expect("an error"), owner);
        refused(process.join(), owner);
        assert_eq!((process.is_alive(), process.exit_status()), (false, None));
        process.terminate();
        process.kill();
        assert!(pool.workers().is_empty());
        pool.stats();
        pool.suspend();
        pool.resume();
        pool.cancel_queued();
        pool.close();
        pool.join();
        pool.terminate();
        drop((process, results, users));
        drop(pool);
        // One that is built here works.
        let own = Pool::new(1).expect("a pool of its own");
        assert_eq!(own.map(|x: u64| x + 1, 0..3), Ok(vec![1, 2, 3]));
        // Neither buffers nor shared memory wait for a thread that is only in the original.
        assert_eq!(own.apply(|x: Vec<u8>| x.len(), vec![0; 100_000]), Ok(100_000));
        let mine = procpool::shared::SharedValue::new(2u64).expect("a value of its own");
        for value in [&shared, &mine] {
            let add = |value: procpool::shared::SharedValue<u64>| *value.lock() += 1;
            own.apply(add, value.clone()).expect("both are shared with its workers");
        }
        assert_eq!(mine.get(), 3);
        let mut own = Process::spawn(|x: u64| x + 1, 1).expect("a process of its own");
        assert_eq!(own.join_timeout(SOON), Some(Ok(2)));
        return;
    }
    // The original is not harmed.
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    users.into_iter().for_each(|user| user.join().expect("a user of the pool"));
    assert_eq!(before.get_timeout(SOON).expect("in time"), Ok((0..8).collect()));
    assert_eq!(results.collect::<Result<Vec<_>, _>>(), Ok((1..100).collect()));
    assert_eq!(completed.filter_map(|task| task.get().ok()).count(), 3);
    assert!(procpool::wait(&pending, procpool::WaitFor::All, Some(SOON)));
    assert_eq!(process.join(), Ok(1));
    assert_eq!(process.exit_status().and_then(|status| status.code()), Some(0));
    assert_eq!(pool.stats().restarts, 0);
    pool.join();
}

/// Drops pools while their workers start.
fn drops() {
    procpool::init();
    for _ in 0..30 {
        drop(Pool::new(4).expect("a pool"));
        drop(Pool::builder().workers(2).build().map(|pool| pool.terminate()));
    }
}

/// Leaves its session, and with that the group that its workers would join at their end.
fn session() {
    procpool::init();
    let mut process = Process::spawn(
        |()| {
            let mut left = std::process::Command::new("sleep").arg("3600").spawn().expect("sleep");
            let _ = left.try_wait();
            left.id()
        },
        (),
    )
    .expect("a process");
    // SAFETY: a plain system call.
    assert_ne!(unsafe { libc::setsid() }, -1, "setsid");
    let mut later = Process::spawn(|()| (), ()).expect("a process");
    let left = process.join().expect("an answer");
    assert_eq!(process.exit_status().and_then(|status| status.code()), Some(0), "{process:?}");
    later.join().expect("an answer");
    assert_eq!(later.exit_status().and_then(|status| status.code()), Some(0), "{later:?}");
    let begun = Instant::now();
    let is_left = || {
        let stat = fs::read_to_string(format!("/proc/{left}/stat"));
        stat.is_ok_and(|stat| !stat.contains(") Z "))
    };
    while is_left() {
        assert!(begun.elapsed() < SOON, "what it has started lives on");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// As `session`, where the parent's group has no number here.
fn exits() {
    procpool::init();
    let mut process = Process::spawn(|()| (), ()).expect("a process");
    process.join().expect("an answer");
    assert_eq!(process.exit_status().and_then(|status| status.code()), Some(0), "{process:?}");
}

/// Run by the dynamic loader, which is what the kernel takes for the executable.
fn loader() {
    procpool::init();
    let error = Pool::new(1).map(drop).expect_err("the loader is no worker");
    let text = error.to_string();
    assert!(matches!(error, Error::Library { .. }), "{text}");
    assert!(text.contains("procpool-test-entry") && text.contains("/ld"), "{text}");
}

/// In a directory that isn't there.
fn gone() {
    procpool::init();
    let error = Pool::builder().workers(1).current_dir("/does/not/exist").build().map(drop);
    let text = chain(&error.expect_err("no directory"));
    assert!(text.contains("/does/not/exist"), "{text}");
}

/// With one system call refused, it works or says which call it was.
fn refused() {
    procpool::init();
    let variable = |name| std::env::var(name).expect("what to refuse");
    let number: u32 = variable("CALL").parse().expect("a call's number");
    let errno: u32 = variable("ERRNO").parse().expect("an error's number");
    let name = variable("NAME");
    let statement = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    // Of what is called, the number; if it is this one, an error, and else go on.
    let mut filter = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, number),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | errno),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the kernel copies the filter.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0, "no new privileges");
        let mode = libc::SECCOMP_MODE_FILTER;
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, mode, &program, 0, 0), 0, "a filter");
    }
    let tried = Pool::builder().workers(2).start_timeout(Duration::from_secs(10)).build();
    let tried = tried.map_err(|error| chain(&error)).and_then(|pool| {
        let result = pool.map(|x: u64| x + 1, 0..10).map_err(|error| error.to_string());
        // Its death is heard of all the same.
        let dies = pool.apply(|()| -> () { std::process::abort() }, ());
        assert!(dies.is_err() || result.is_err());
        pool.join();
        result
    });
    let tried = tried.and_then(|answers| {
        let mut process = Process::spawn(|x: u64| x + 1, 1).map_err(|error| chain(&error))?;
        let answer = process.join_timeout(SOON).expect("an end in time");
        answer.map_err(|error| chain(&error)).map(|answer| assert_eq!(answer, 2))?;
        Ok(answers)
    });
    match tried {
        Ok(answers) => assert_eq!(answers, (1..11).collect::<Vec<u64>>()),
        // What a worker says itself, it says on standard error.
        Err(error) => eprintln!("{name}: {error}"),
    }
}

/// An error and its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

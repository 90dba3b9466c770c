//! Pools over several agents inside of one process. Their workers are processes as ever.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use procpool_worker::function::ImageId;

use super::agent::{Agent, Ending};
use super::engine::local::ends;
use super::manager::Manager;
use super::requests::{self, Handle, OF_TEST};
use super::wire::Hello;
use super::{Hosts, LOSS};
use crate::error::{DidRun, Error, TaskErrorKind};
use crate::pool::handle::Pool;
use crate::pool::observe::events::EventKind;
use crate::pool::options::TaskOptions;

crate::test_support!();

/// A manager, and agents on threads.
struct Cluster {
    handle: &'static Handle,
    agents: Vec<(Arc<AtomicBool>, JoinHandle<Ending>)>,
}

fn hello(host: &str) -> Hello {
    Hello {
        version: "1".to_owned(),
        target: "test".to_owned(),
        image: ImageId::own(),
        host: host.to_owned(),
        boot: host.to_owned(),
        cpus: 2,
        memory: 1 << 30,
    }
}

impl Cluster {
    /// Starts hosts `n0`, `n1` and so on, the first of which is this thread's.
    fn new(hosts: usize) -> Self {
        Self::with(hosts, |at| hello(&format!("n{at}")))
    }

    fn with(hosts: usize, hello: impl Fn(usize) -> Hello) -> Self {
        let mut ends = ends(hosts).into_iter();
        let (own, first) = (ends.next().unwrap(), hello(0));
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            let handle: &'static Handle = Box::leak(Box::new(Handle::of_this_thread()));
            sender.send(handle).unwrap();
            Manager::new(own, handle, first).run();
        });
        let handle = receiver.recv().unwrap();
        OF_TEST.set(Some(handle));
        let agents = ends.enumerate().map(|(at, end)| {
            let (cut, hello) = (Arc::clone(&end.is_cut), hello(at + 1));
            (cut, std::thread::spawn(move || Agent::new(end).run(&hello).0))
        });
        Self { handle, agents: agents.collect() }
    }

    fn cut(&self, host: usize) {
        self.agents[host - 1].0.store(true, SeqCst);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        OF_TEST.set(Some(self.handle));
        requests::leave();
        OF_TEST.set(None);
    }
}

fn builder() -> crate::PoolBuilder {
    Pool::builder().workers(2).hosts(Hosts::Mpi)
}

fn nap(x: u64) -> u64 {
    std::thread::sleep(Duration::from_millis(2));
    x + 1
}

/// Calls `f` until it returns true.
fn wait_until(mut f: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(30);
    while !f() {
        assert!(Instant::now() < limit, "it takes too long");
        std::thread::yield_now();
    }
}

#[test]
fn every_host_runs_items_and_results_are_in_order() {
    let _cluster = Cluster::new(3);
    let pool = builder().build().unwrap();
    let names: Vec<String> = pool.hosts().iter().map(|host| host.name.to_string()).collect();
    assert_eq!(names, ["n0", "n1", "n2"]);
    let reports: Vec<_> = pool.imap(nap, 0..600).reports().collect();
    let values: Vec<u64> = reports.iter().map(|report| report.result.clone().unwrap()).collect();
    assert_eq!(values, (1..=600).collect::<Vec<_>>());
    let workers = reports.iter().map(|report| report.worker.unwrap());
    let hosts: BTreeSet<_> = workers.clone().map(|worker| worker.host.unwrap()).collect();
    assert_eq!(hosts.len(), 3, "{hosts:?}");
    assert!(workers.clone().all(|worker| worker.slot < 6));
    for info in pool.hosts() {
        let here = workers.clone().filter(|worker| worker.host == Some(info.name));
        assert!(here.into_iter().all(|worker| info.slots.contains(&worker.slot)));
    }
    assert_eq!(pool.map(nap, 0..100).unwrap(), (1..=100).collect::<Vec<_>>());
}

#[test]
fn many_small_items_are_each_answered_once() {
    let _cluster = Cluster::new(2);
    let pool = builder().build().unwrap();
    let squares = pool.map(|x: u64| x * x, 0..200_000).unwrap();
    assert!(squares.iter().enumerate().all(|(x, square)| (x * x) as u64 == *square));
    let texts = pool.map(|x: u32| x.to_string(), 0..20_000).unwrap();
    assert!(texts.iter().enumerate().all(|(x, text)| x.to_string() == *text));
    assert_eq!(pool.stats().done, 220_000);
}

#[test]
fn large_arguments_and_results_cross_hosts() {
    let _cluster = Cluster::new(2);
    let pool = builder().build().unwrap();
    let items = || (0..12u8).map(|x| vec![x; 1 << 20]);
    let double = |bytes: Vec<u8>| -> Vec<u8> {
        std::thread::sleep(Duration::from_millis(20));
        bytes.iter().map(|byte| byte * 2).collect()
    };
    let reports: Vec<_> = pool.imap(double, items()).reports().collect();
    for (x, report) in reports.iter().enumerate() {
        assert_eq!(*report.result.as_ref().unwrap(), vec![x as u8 * 2; 1 << 20]);
    }
    assert!(reports.iter().any(|report| *report.worker.unwrap().host.unwrap() == *"n1"));
    // Not the elements of a vector.
    let nested = |text: (String, Vec<u32>)| text;
    let items = || (0..6).map(|x| (x.to_string().repeat(400_000), vec![x; 100_000]));
    assert_eq!(pool.map(nested, items()).unwrap(), items().collect::<Vec<_>>());
}

#[test]
fn a_crash_a_limit_or_a_panic_on_any_host_is_one_items_error() {
    let _cluster = Cluster::new(3);
    let pool = builder().task_timeout(Duration::from_secs(1)).build().unwrap();
    fn act(x: u64) -> u64 {
        match x % 10 {
            3 => std::process::abort(),
            5 => panic!("five"),
            7 => loop {
                std::thread::sleep(Duration::from_secs(1));
            },
            _ => nap(x),
        }
    }
    let reports: Vec<_> = pool.imap(act, 0..60).reports().collect();
    for (x, report) in (0..).zip(&reports) {
        match (x % 10, &report.result) {
            (3, Err(error)) => assert!(matches!(error.kind(), TaskErrorKind::Died { .. })),
            (5, Err(error)) => assert!(matches!(error.kind(), TaskErrorKind::Panicked { .. })),
            (7, Err(error)) => assert!(matches!(error.kind(), TaskErrorKind::TimedOut { .. })),
            (_, result) => assert_eq!(*result, Ok(x + 1)),
        }
        assert!(report.worker.unwrap().host.is_some());
    }
    let failed = reports.iter().filter(|report| report.result.is_err());
    let hosts: BTreeSet<_> = failed.map(|report| report.worker.unwrap().host).collect();
    assert!(hosts.len() > 1, "only {hosts:?} have seen errors");
}

#[test]
fn what_tasks_say_on_any_host_reaches_their_caller() {
    fn say(x: u64) -> u64 {
        crate::progress(x, 1000);
        crate::emit(&(x, vec![7_u8; 10_000])).unwrap();
        nap(x);
        if x % 10 == 3 {
            std::process::abort();
        }
        x
    }
    let _cluster = Cluster::new(2);
    let pool = builder().build().unwrap();
    let task = pool.map_async(say, 0..40);
    let (mut values, mut hosts) = (Vec::new(), BTreeSet::new());
    for update in task.updates::<(u64, Vec<u8>)>() {
        let update = update.unwrap();
        assert_eq!((update.value.0, update.value.1.len(), update.attempt), (update.id, 10_000, 1));
        hosts.insert(update.worker.unwrap().host);
        values.push(update.id);
    }
    values.sort_unstable();
    assert_eq!((values, hosts.len()), ((0..40).collect(), 2));
    for x in [3, 13, 23, 33] {
        let error = pool.apply(say, x).unwrap_err();
        let progress = crate::Progress { done: x, total: Some(1000) };
        assert_eq!(error.progress(), Some(progress), "{error}");
    }
}

#[test]
fn a_retried_item_knows_its_attempt_on_another_host() {
    let _cluster = Cluster::new(2);
    let pool = builder().retries(1).build().unwrap();
    fn once(x: u64) -> (u64, u32) {
        nap(x);
        let attempt = crate::worker().unwrap().attempt;
        if attempt == 1 {
            std::process::abort();
        }
        (x, attempt)
    }
    let reports: Vec<_> = pool.imap(once, 0..12).reports().collect();
    for (x, report) in (0..).zip(&reports) {
        assert_eq!(report.result, Ok((x, 2)));
        assert_eq!(report.attempt, 2);
    }
    assert!(reports.iter().any(|report| *report.worker.unwrap().host.unwrap() == *"n1"));
}

#[test]
fn contexts_initializers_and_broadcasts_reach_every_worker() {
    let _cluster = Cluster::new(3);
    let pool = builder().initializer(|base: u64| base * 10, 7).build().unwrap();
    let slots = pool.broadcast(
        |()| {
            let worker = crate::worker().unwrap();
            (worker.slot, worker.host, crate::with_state(|state: &mut u64| *state))
        },
        (),
    );
    let expected = (0..6).map(|slot| Ok((slot, Some(format!("n{}", slot / 2)), Some(70))));
    assert_eq!(slots, expected.collect::<Vec<_>>());
    let sum = |table: &Vec<u64>, x: u64| {
        std::thread::sleep(Duration::from_millis(1));
        table[x as usize % table.len()] + x
    };
    for table in [vec![1, 2, 3], (0..300_000).collect::<Vec<u64>>()] {
        let sums = pool.map_with(table.clone(), sum, 0..200).unwrap();
        let expected = (0..200).map(|x| table[x as usize % table.len()] + x);
        assert_eq!(sums, expected.collect::<Vec<_>>());
    }
    assert_eq!(pool.map_init(|| 5u64, |five, x: u64| *five + x, 0..100).unwrap()[99], 104);
}

#[test]
fn random_numbers_depend_on_the_seed_and_not_on_the_host() {
    let _cluster = Cluster::new(2);
    let draw = |_: u64| {
        std::thread::sleep(Duration::from_millis(1));
        crate::random_u64()
    };
    let spread = builder().seed(5).build().unwrap().map(draw, 0..100).unwrap();
    let here = Pool::builder().hosts(Hosts::Local).workers(2).seed(5).build().unwrap();
    assert_eq!(spread, here.map(draw, 0..100).unwrap());
}

#[test]
fn handles_that_cannot_leave_the_host_are_refused() {
    let _cluster = Cluster::new(2);
    let pool = builder().build().unwrap();
    let (sender, _receiver) = crate::channel::unbounded::<u64>().unwrap();
    let send = |sender: crate::channel::Sender<u64>| sender.send(1).is_ok();
    let error = pool.apply(send, sender.clone()).unwrap_err();
    assert!(error.to_string().contains("this host only"), "{error}");
    let results: Vec<_> = pool.imap(send, [sender.clone()]).collect();
    assert!(results[0].as_ref().unwrap_err().to_string().contains("this host only"));
    let with = pool.map_with(sender.clone(), |sender, x: u64| sender.send(x).is_ok(), 0..2);
    assert!(with.unwrap_err().to_string().contains("this host only"));
    let error = builder().initializer(|_: crate::channel::Sender<u64>| (), sender).build();
    assert!(error.unwrap_err().to_string().contains("handle"));
    // A handle that a task returns stays on its host.
    let make = |x: u64| {
        nap(x);
        crate::sync::Event::new().unwrap()
    };
    for report in pool.imap(make, 0..40).reports() {
        let is_here = *report.worker.unwrap().host.unwrap() == *"n0";
        assert_eq!(report.result.is_ok(), is_here, "{:?}", report.result.err());
    }
}

#[test]
fn a_cancelled_call_ends_on_every_host() {
    let _cluster = Cluster::new(3);
    let pool = builder().build().unwrap();
    let sleep = |_: u64| std::thread::sleep(Duration::from_secs(600));
    let task = pool.map_async(sleep, 0..1000);
    wait_until(|| pool.stats().running >= 6);
    task.cancel();
    assert_eq!(*task.get().unwrap_err().kind(), TaskErrorKind::Cancelled);
    assert_eq!(pool.map(nap, 0..100).unwrap().len(), 100, "the pool goes on");
    let task = pool.map_async(sleep, 0..1000);
    wait_until(|| pool.stats().running >= 6);
    pool.terminate();
    let error = task.get().unwrap_err();
    assert_eq!(*error.kind(), TaskErrorKind::Closed);
}

#[test]
fn a_host_that_answers_after_the_end_of_its_pool_is_not_lost() {
    let _cluster = Cluster::new(2);
    let lasting = builder().build().unwrap();
    for _ in 0..10 {
        let pool = builder().build().unwrap();
        let mut results = pool.imap_unordered(nap, 0..);
        assert!(results.by_ref().take(20).all(|result| result.is_ok()));
        drop(results);
        pool.terminate();
    }
    assert!(lasting.hosts().iter().all(|host| host.lost.is_none()));
    assert_eq!(lasting.map(nap, 0..100).unwrap().len(), 100);
}

#[test]
fn join_waits_for_all_hosts_and_events_name_them() {
    let _cluster = Cluster::new(3);
    let events = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&events);
    let pool =
        builder().on_event(move |event| seen.lock().unwrap().push(event.clone())).build().unwrap();
    let task = pool.map_async(nap, 0..300);
    pool.join();
    assert_eq!(task.get().unwrap().len(), 300);
    let events = events.lock().unwrap();
    let mut finished = BTreeSet::new();
    let mut hosts = BTreeSet::new();
    for event in events.iter() {
        match event.kind {
            EventKind::Finished { id, slot, .. } => {
                assert!(finished.insert(id), "{id} has finished twice");
                let host = event.host.unwrap();
                assert_eq!(*host, format!("n{}", slot / 2));
                hosts.insert(host);
            }
            EventKind::Drained => assert_eq!(finished.len(), 300),
            _ => {}
        }
    }
    assert_eq!(finished.len(), 300);
    assert_eq!(hosts.len(), 3);
    assert!(events.iter().any(|event| event.kind == EventKind::Drained));
}

#[test]
fn output_is_captured_on_every_host() {
    let _cluster = Cluster::new(2);
    let pool = builder().output(crate::OutputMode::Capture).build().unwrap();
    let print = |x: u64| {
        nap(x);
        println!("item {x}");
    };
    let mut hosts = BTreeSet::new();
    for (x, report) in pool.imap(print, 0..40).reports().enumerate() {
        assert_eq!(String::from_utf8(report.output).unwrap(), format!("item {x}\n"));
        hosts.insert(report.worker.unwrap().host);
    }
    assert_eq!(hosts.len(), 2);
}

#[cfg(feature = "sandbox")]
#[test]
fn a_sandbox_confines_the_workers_of_every_host() {
    let _cluster = Cluster::new(3);
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    std::fs::create_dir(path("named")).unwrap();
    std::fs::write(path("secret"), "x").unwrap();
    let reads = |path: String| nap(0) == 1 && std::fs::read_to_string(path).is_ok();
    let read_by_all = |pool: &Pool, path: String| -> Vec<bool> {
        pool.broadcast(reads, path).into_iter().map(Result::unwrap).collect()
    };
    let open = builder().build().unwrap();
    assert_eq!(read_by_all(&open, path("secret")), [true; 6]);
    open.close();
    let sandbox = || crate::Sandbox::strict().read(path("named"));
    std::fs::write(path("named/file"), "x").unwrap();
    for sandbox in [sandbox(), sandbox().after_initializer()] {
        let pool = builder().sandbox(sandbox).build().unwrap();
        assert_eq!(read_by_all(&pool, path("secret")), [false; 6]);
        assert_eq!(read_by_all(&pool, path("named/file")), [true; 6]);
    }
    let missing = builder().sandbox(crate::Sandbox::strict().read(path("nothing"))).build();
    let missing = format!("{:?}", missing.unwrap_err());
    assert!(missing.contains("nothing can't be opened"), "{missing}");
}

#[test]
fn a_lost_host_costs_time_and_nothing_else() {
    let cluster = Cluster::new(3);
    let events = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&events);
    let on_event = move |event: &crate::Event| {
        if let EventKind::HostLost { .. } = event.kind {
            seen.lock().unwrap().push(event.host.unwrap().to_string());
        }
    };
    let pool = builder().retries(2).on_event(on_event).build().unwrap();
    let began = Instant::now();
    let mut values = Vec::new();
    for (x, result) in pool.imap(nap, 0..4000).enumerate() {
        values.push(result.unwrap());
        if x == 100 {
            cluster.cut(2);
        }
    }
    assert_eq!(values, (1..=4000).collect::<Vec<_>>());
    assert!(began.elapsed() < LOSS + Duration::from_secs(20));
    assert_eq!(pool.stats().done, 4000, "each item was counted once");
    let lost: Vec<_> = pool.hosts().into_iter().filter(|host| host.lost.is_some()).collect();
    assert_eq!(lost.len(), 1);
    assert_eq!(*lost[0].name, *"n2");
    // What is for its workers alone fails.
    let all = pool.broadcast(|()| 1, ());
    assert_eq!(all.iter().filter(|result| result.is_err()).count(), 2);
    assert!(matches!(all[5].as_ref().unwrap_err().kind(), TaskErrorKind::HostLost { .. }));
    pool.join();
    assert_eq!(*events.lock().unwrap(), ["n2"]);
}

#[test]
fn without_retries_a_lost_hosts_items_fail_and_may_have_run() {
    let cluster = Cluster::new(2);
    let pool = builder().build().unwrap();
    let sleep = |_: u64| std::thread::sleep(Duration::from_secs(600));
    let tasks: Vec<_> = (0..4).map(|x| pool.apply_async(sleep, x)).collect();
    wait_until(|| pool.stats().running == 4);
    cluster.cut(1);
    let mut lost = 0;
    for task in crate::as_completed(tasks).take(2) {
        let error = task.get().unwrap_err();
        assert!(matches!(error.kind(), TaskErrorKind::HostLost { .. }), "{error}");
        assert_eq!(error.did_it_run(), DidRun::Maybe);
        lost += 1;
    }
    assert_eq!(lost, 2);
}

#[test]
fn an_agent_without_a_manager_kills_its_workers_and_ends() {
    let mut cluster = Cluster::new(2);
    let pool = builder().build().unwrap();
    let pids: Vec<_> = pool.broadcast(|()| std::process::id(), ()).into_iter().flatten().collect();
    cluster.cut(1);
    let (_, agent) = cluster.agents.pop().unwrap();
    assert!(matches!(agent.join().unwrap(), Ending::Lost(_)));
    for pid in &pids[2..] {
        let path = format!("/proc/{pid}");
        wait_until(|| !std::path::Path::new(&path).exists());
    }
}

#[test]
fn another_build_is_refused_with_both_ids() {
    let _cluster = Cluster::with(3, |at| {
        let version = if at == 2 { "2" } else { "1" };
        Hello { version: version.to_owned(), ..hello(&format!("n{at}")) }
    });
    let error = builder().build().unwrap_err();
    let Error::BuildMismatch { host, own, theirs } = &error else { panic!("{error}") };
    assert_eq!(**host, *"n2");
    assert!(own.contains("procpool 1") && theirs.contains("procpool 2"), "{error}");
}

#[test]
fn agents_on_one_host_share_its_cpus_and_have_names_of_their_own() {
    let _cluster = Cluster::with(3, |_| hello("one"));
    let pool = Pool::builder().hosts(Hosts::Mpi).build().unwrap();
    let hosts: Vec<_> =
        pool.hosts().iter().map(|host| (host.name.to_string(), host.slots.clone())).collect();
    let expected = [("one#0", 0..1), ("one#1", 1..2), ("one#2", 2..3)];
    assert_eq!(hosts, expected.map(|(name, slots)| (name.to_owned(), slots)));
}

#[test]
fn pools_of_one_program_share_the_hosts() {
    let _cluster = Cluster::new(2);
    let first = builder().workers_on("n1", 3).build().unwrap();
    let second = builder().name("second").build().unwrap();
    assert_eq!(first.workers().len(), 5);
    let (a, b) = (first.map_async(nap, 0..200), second.map_async(nap, 0..200));
    assert_eq!(a.get().unwrap(), b.get().unwrap());
    drop(first);
    assert_eq!(second.map(nap, 0..100).unwrap().len(), 100);
}

#[test]
fn what_a_host_without_workers_cannot_run_is_run_elsewhere() {
    let _cluster = Cluster::new(2);
    fn picky(_: ()) {
        let host = crate::worker().and_then(|worker| worker.host);
        assert_ne!(host.as_deref(), Some("n1"), "not here");
    }
    let pool = builder().initializer(picky, ()).build().unwrap();
    let reports: Vec<_> = pool.imap(nap, 0..2000).reports().collect();
    assert!(reports.iter().all(|report| report.result.is_ok()));
    assert!(reports.iter().all(|report| *report.worker.unwrap().host.unwrap() == *"n0"));
    let all = pool.broadcast(|()| (), ());
    assert_eq!(all.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, true, false, false]);
}

#[test]
fn a_slow_hosts_waiting_items_are_run_elsewhere() {
    let _cluster = Cluster::new(2);
    let pool = builder().workers(1).build().unwrap();
    fn uneven(x: u64) -> u64 {
        // Known to be short, until one on the other host is long.
        if crate::worker().unwrap().host.as_deref() == Some("n1") && x >= 5000 {
            std::thread::sleep(Duration::from_millis(300));
        }
        x
    }
    let pool = pool.with_options(TaskOptions::new());
    let values = pool.map(uneven, 0..20_000).unwrap();
    assert_eq!(values, (0..20_000).collect::<Vec<_>>());
}

#[test]
fn a_pause_of_this_process_neither_loses_a_peer_nor_hides_its_loss() {
    let start = Instant::now();
    let (mut last, now) = (start, start + 12 * LOSS);
    let pause = super::pause_of(&mut last, now);
    // Silent since before the pause, and heard after it.
    for (at, silence) in [(start, Duration::ZERO), (now, Duration::ZERO)] {
        let mut heard = at;
        super::exclude_pause(&mut heard, pause, now);
        assert_eq!(now - heard, silence);
        assert!(heard <= now, "{:?} ahead", heard - now);
    }
    assert_eq!(super::pause_of(&mut last, now + super::BEAT), Duration::ZERO);
}

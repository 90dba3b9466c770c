//! What tasks say while they run: progress and emitted values.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_core::Stream;
use procpool::{
    EmitError, EventKind, Pool, Process, Progress, TaskErrorKind, UpdateError, emit, progress, sync,
};

use crate::support::{SOON, SideEffects, kill, wait_until};

fn count((to, gate): (u64, Option<sync::Event>)) -> u64 {
    for n in 0..to {
        progress(n, to);
        emit(&n).unwrap();
    }
    progress(to, to);
    if let Some(gate) = gate {
        assert!(gate.wait_timeout(SOON), "it is never told to go on");
    }
    to
}

fn values<T: serde::de::DeserializeOwned, R>(task: &procpool::Task<R>) -> Vec<T> {
    task.updates::<T>().map(|update| update.unwrap().value).collect()
}

#[test]
fn what_a_task_emits_arrives_in_order_and_while_it_runs() {
    let pool = Pool::new(1).unwrap();
    let gate = sync::Event::new().unwrap();
    let task = pool.apply_async(count, (1000, Some(gate.clone())));
    let mut updates = task.updates::<u64>();
    for n in 0..1000 {
        let update = updates.next_timeout(SOON).unwrap().unwrap().unwrap();
        assert_eq!((update.value, update.attempt), (n, 1));
        assert_eq!(update.worker.map(|worker| worker.pid), Some(pool.workers()[0].pid));
    }
    assert!(!task.is_ready());
    assert!(updates.next_timeout(Duration::ZERO).is_err(), "none is left, and it runs");
    gate.set();
    assert!(updates.next().is_none());
    assert_eq!(task.get(), Ok(1000));
}

#[test]
fn large_values_and_those_of_several_threads_are_whole() {
    fn emit_all(threads: u8) {
        std::thread::scope(|scope| {
            for id in 0..threads {
                scope.spawn(move || {
                    (0..20).for_each(|n| emit(&vec![id; n * 5000]).unwrap());
                });
            }
        });
    }
    let pool = Pool::new(1).unwrap();
    let task = pool.apply_async(emit_all, 4);
    let mut seen = vec![Vec::new(); 4];
    let mut empty = 0;
    for value in values::<Vec<u8>, _>(&task) {
        match value.first() {
            None => empty += 1,
            Some(id) => {
                assert!(value.iter().all(|byte| byte == id));
                seen[usize::from(*id)].push(value.len());
            }
        }
    }
    assert_eq!(empty, 4);
    let expected: Vec<_> = (1..20).map(|n| n * 5000).collect();
    assert!(seen.iter().all(|lens| *lens == expected), "{seen:?}");
}

#[test]
fn each_items_values_name_it() {
    fn twice(n: u64) {
        emit(&n).unwrap();
        emit(&(n + 100)).unwrap();
    }
    let pool = Pool::new(2).unwrap();
    let task = pool.map_async(twice, 0..50);
    let mut got = Vec::new();
    for update in task.updates::<u64>() {
        let update = update.unwrap();
        assert_eq!(update.value % 100, update.id);
        got.push(update.value);
    }
    assert_eq!(task.progress(), Some(Progress { done: 50, total: Some(50) }));
    got.sort_unstable();
    assert_eq!(got, (0..50).chain(100..150).collect::<Vec<_>>());
}

#[test]
fn what_a_task_emitted_before_a_crash_is_delivered_and_the_error_says_how_far_it_was() {
    fn crash(at: u64) {
        for n in 0..100 {
            progress(n, 100);
            emit(&n).unwrap();
            if n == at {
                std::process::abort();
            }
        }
    }
    let pool = Pool::builder().workers(1).retries(1).build().unwrap();
    let task = pool.apply_async(crash, 37);
    let updates: Vec<_> = task.updates::<u64>().map(Result::unwrap).collect();
    let expected: Vec<_> =
        (1..=2).flat_map(|attempt| (0..=37).map(move |n| (attempt, n))).collect();
    let got: Vec<_> = updates.iter().map(|update| (update.attempt, update.value)).collect();
    assert_eq!(got, expected);
    let error = task.get().unwrap_err();
    assert_eq!(error.progress(), Some(Progress { done: 37, total: Some(100) }));
    assert!(error.to_string().contains(", at 37 of 100): "), "{error}");
    assert_eq!(pool.apply_async(crash, 200).get(), Ok(()), "the next task is not affected");
}

#[test]
fn a_task_that_is_stopped_for_its_time_says_how_far_it_was() {
    fn hang(_: ()) {
        progress(5, None);
        loop {
            std::thread::park();
        }
    }
    let pool = Pool::builder().workers(1).task_timeout(Duration::from_millis(100)).build().unwrap();
    let error = pool.apply(hang, ()).unwrap_err();
    assert!(matches!(error.kind(), TaskErrorKind::TimedOut { .. }));
    assert_eq!(error.progress(), Some(Progress { done: 5, total: None }));
    // One that has said nothing has no progress, also after one that has.
    let error = pool.apply(|()| -> () { std::process::abort() }, ()).unwrap_err();
    assert_eq!(error.progress(), None);
}

#[test]
fn progress_is_seen_while_a_task_runs() {
    fn work(gate: sync::Event) {
        progress(1, 3);
        assert!(gate.wait_timeout(SOON));
        for _ in 0..1_000_000 {
            progress(2, 3);
        }
        progress(3, 3);
        assert!(gate.wait_timeout(SOON));
    }
    let events = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&events);
    let pool = Pool::builder().workers(1).on_event(move |event| {
        if let EventKind::Progressed { id: 0, attempt: 1, done, total, .. } = &event.kind {
            seen.lock().unwrap().push((*done, *total));
        }
    });
    let pool = pool.build().unwrap();
    let gate = sync::Event::new().unwrap();
    let task = pool.apply_async(work, gate.clone());
    let at = |done| Some(Progress { done, total: Some(3) });
    wait_until("the first step", || task.progress() == at(1));
    gate.set();
    task.get().unwrap();
    wait_until("its events", || events.lock().unwrap().last() == Some(&(3, Some(3))));
    let events = events.lock().unwrap();
    assert!(events.len() < 100, "{} events of a million calls", events.len());
}

#[test]
fn a_type_that_was_not_emitted_is_an_error_that_names_both() {
    let pool = Pool::new(1).unwrap();
    let task = pool.apply_async(|()| emit(&7_u32).unwrap(), ());
    let error = task.updates::<String>().next().unwrap().unwrap_err();
    assert!(
        matches!(&error, UpdateError::OtherType { emitted, .. } if emitted == "u32"),
        "{error}"
    );
    assert!(error.to_string().contains("String"), "{error}");
}

#[test]
fn values_that_nobody_takes_are_bounded_and_the_loss_is_told() {
    fn flood(_: ()) {
        (0..40_u64).for_each(|n| emit(&(n, vec![0_u8; 1 << 20])).unwrap());
    }
    let pool = Pool::new(1).unwrap();
    let task = pool.apply_async(flood, ());
    wait_until("its end", || task.is_ready());
    let mut updates = task.updates::<(u64, Vec<u8>)>();
    let Some(Err(UpdateError::Lagged(lost))) = updates.next() else { panic!("none was lost") };
    let rest: Vec<_> = updates.map(|update| update.unwrap().value.0).collect();
    assert_eq!(rest, (lost..40).collect::<Vec<_>>());
    assert!((10..16).contains(&rest.len()), "{} values are left", rest.len());
}

#[test]
fn a_value_that_cannot_be_emitted_is_an_error() {
    fn too_long(_: ()) -> String {
        emit(&vec![0_u8; 17 << 20]).unwrap_err().to_string()
    }
    let pool = Pool::new(1).unwrap();
    assert!(pool.apply(too_long, ()).unwrap().contains("16 MiB are allowed"));
    let secret = |()| emit(&crate::support::Secret).unwrap_err().to_string();
    assert!(pool.apply(secret, ()).unwrap().contains("it is a secret"));
    assert_eq!(emit(&1), Err(EmitError::NoTask));
    progress(1, 2);
    let of_process = |()| {
        progress(1, 2);
        emit(&1).unwrap_err().to_string()
    };
    let text = Process::spawn(of_process, ()).unwrap().join().unwrap();
    assert!(text.contains("Process"), "{text}");
}

#[test]
fn a_copy_made_by_fork_says_nothing() {
    fn fork(_: ()) {
        // SAFETY: the child only calls what is tested, and `_exit`.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let silent = emit(&1) == Err(EmitError::NoTask);
            // SAFETY: ends the process.
            unsafe { libc::_exit(i32::from(!silent)) };
        }
        let mut status = 0;
        // SAFETY: a plain system call.
        unsafe { libc::waitpid(child, &mut status, 0) };
        assert_eq!(status, 0);
        emit(&2).unwrap();
    }
    let pool = Pool::new(1).unwrap();
    let task = pool.apply_async(fork, ());
    assert_eq!(values::<i32, _>(&task), [2]);
    task.get().unwrap();
}

#[test]
fn updates_are_a_stream_beside_the_tasks_future() {
    let pool = Pool::new(1).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    let values = runtime.block_on(async {
        let task = pool.apply_async(count, (100, None));
        let mut updates = pin!(task.updates::<u64>().into_stream());
        let mut values = Vec::new();
        while let Some(update) = poll_fn(|context| updates.as_mut().poll_next(context)).await {
            values.push(update.unwrap().value);
        }
        assert_eq!(task.await, Ok(100));
        values
    });
    assert_eq!(values, (0..100).collect::<Vec<_>>());
}

#[test]
fn a_worker_that_is_killed_while_it_emits_loses_only_what_it_had_not_sent() {
    fn emit_for_ever(effects: SideEffects) {
        let mut n = 0_u64;
        loop {
            emit(&(n, vec![7_u8; 10_000])).unwrap();
            effects.note(0);
            n += 1;
        }
    }
    let effects = SideEffects::new();
    let pool = Pool::new(1).unwrap();
    for _ in 0..5 {
        let before = effects.count(0);
        let task = pool.apply_async(emit_for_ever, effects.clone());
        wait_until("it emits", || effects.count(0) > before + 50);
        kill(pool.workers()[0].pid, libc::SIGKILL);
        let mut sent = Vec::new();
        for update in task.updates::<(u64, Vec<u8>)>() {
            match update {
                Ok(update) => {
                    assert_eq!(update.value.1, vec![7; 10_000]);
                    sent.push(update.value.0);
                }
                Err(error) => assert!(matches!(error, UpdateError::Lagged(_)), "{error}"),
            }
        }
        assert!(task.get().is_err());
        let noted = (effects.count(0) - before) as u64;
        let last = *sent.last().unwrap() + 1;
        assert!(sent.windows(2).all(|pair| pair[0] + 1 == pair[1]), "none is missing between");
        assert!(last >= noted, "{noted} were sent, and {last} arrived");
    }
}

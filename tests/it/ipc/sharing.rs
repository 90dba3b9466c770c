//! Shared memory and open files in arguments, results and messages: one copy, whatever the number of processes.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use crate::support::{alone, kill, wait_until};
use procpool::shared::{SharedArray, SharedFd, SharedSlice, SharedValue};
use procpool::sync::Lock;
use procpool::{Pool, TaskErrorKind, TaskOptions, ValueSide};

/// Returns `field` (in KiB) of each of a process's mappings of shared memory of exactly this size.
fn mappings(pid: u32, bytes: usize, field: &str) -> Vec<usize> {
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
    let mut found = Vec::new();
    let mut is_ours = false;
    for line in maps.lines() {
        let (name, value) = line.split_once(':').unwrap();
        let value = value.trim_end_matches("kB").trim().parse::<usize>();
        if line.contains(" rw-s ") || line.contains(" r--p ") {
            is_ours = line.contains("memfd:procpool");
        } else if name == "Size" {
            is_ours &= value == Ok(bytes / 1024);
        }
        if is_ours && name == field {
            found.push(value.unwrap());
        }
    }
    found
}

fn sum((numbers, from): (SharedSlice<u64>, usize)) -> u64 {
    numbers[from..].iter().sum()
}

#[test]
fn a_shared_slice_is_read_by_tasks_wherever_it_is_in_their_argument() {
    let numbers = SharedSlice::new([1, 2, 3]).unwrap();
    let pool = Pool::new(2).unwrap();
    assert_eq!(
        pool.apply(|numbers: SharedSlice<u64>| numbers.to_vec(), numbers.clone()).unwrap(),
        [1, 2, 3]
    );
    assert_eq!(pool.apply(sum, (numbers.clone(), 1)), Ok(5));
    let many = (0..1000).map(|i| (numbers.clone(), i % 3));
    assert_eq!(pool.map(sum, many).unwrap()[..4], [6, 5, 3, 6]);
    let nested = |all: Vec<Option<SharedSlice<u64>>>| all.into_iter().flatten().map(|n| n[2]).sum();
    let argument = vec![Some(numbers.clone()), None, Some(numbers.clone())];
    assert_eq!(pool.apply(nested, argument), Ok(6u64));
    assert_eq!(pool.apply_async(sum, (numbers, 2)).get(), Ok(3));
}

#[test]
fn a_shared_slice_is_written_in_place_once() {
    let squares = SharedSlice::build(1000, |squares: &mut [u32]| {
        assert!(squares.iter().all(|x| *x == 0));
        (0..).zip(squares).for_each(|(x, square)| *square = x * x);
    });
    let squares = squares.unwrap();
    assert_eq!((squares.len(), squares[999]), (1000, 998_001));
    let empty = SharedSlice::<f64>::new([]).unwrap();
    assert!(empty.is_empty());
    let pool = Pool::new(1).unwrap();
    assert_eq!(pool.apply(|empty: SharedSlice<f64>| empty.len(), empty), Ok(0));
    assert!(SharedSlice::<u64>::build(usize::MAX / 2, |_| ()).is_err());
}

#[test]
fn a_shared_slice_can_be_kept_by_an_initializer_and_reaches_each_new_worker() {
    let numbers = SharedSlice::new([4, 5, 6]).unwrap();
    let pool = Pool::builder().workers(2).retries(1);
    let pool = pool.initializer(|numbers: SharedSlice<u64>| numbers, numbers).build().unwrap();
    let total = |()| procpool::with_state(|numbers: &mut SharedSlice<u64>| numbers.iter().sum());
    for worker in pool.workers() {
        assert_eq!(pool.apply(total, ()), Ok(Some(15u64)));
        kill(worker.pid, libc::SIGKILL);
    }
    assert_eq!(pool.apply(total, ()), Ok(Some(15)));
}

#[test]
fn a_worker_passes_a_shared_slice_on_to_workers_of_its_own() {
    fn in_turn((numbers, depth): (SharedSlice<u64>, u32)) -> u64 {
        if depth == 0 {
            return numbers.iter().sum();
        }
        Pool::new(1).unwrap().apply(in_turn, (numbers, depth - 1)).unwrap()
    }
    let numbers = SharedSlice::new([7, 8, 9]).unwrap();
    assert_eq!(Pool::new(1).unwrap().apply(in_turn, (numbers, 2)), Ok(24));
}

#[test]
fn a_retried_task_gets_the_same_argument() {
    let marker = tempfile::NamedTempFile::new().unwrap();
    fn die_once((numbers, marker): (SharedSlice<u64>, std::path::PathBuf)) -> u64 {
        if fs::remove_file(marker).is_ok() {
            std::process::abort();
        }
        numbers.iter().sum()
    }
    let pool = Pool::new(1).unwrap().with_options(TaskOptions::new().retries(1));
    let task = {
        let numbers = SharedSlice::new([1, 2]).unwrap();
        pool.apply_async(die_once, (numbers, marker.path().to_owned()))
    };
    assert_eq!(task.get(), Ok(3));
}

#[test]
fn a_shared_slice_costs_its_memory_once_however_many_workers_read_it() {
    const BYTES: usize = 64 << 20;
    let numbers = SharedSlice::build(BYTES / 8, |numbers: &mut [u64]| numbers.fill(1)).unwrap();
    let pool = Pool::new(4).unwrap();
    let total = |numbers: SharedSlice<u64>| numbers.iter().sum();
    // Each worker holds it until all four have read it.
    let meet = crate::support::SideEffects::new();
    let read = |(numbers, meet, me): (SharedSlice<u64>, crate::support::SideEffects, u64)| {
        let total: u64 = numbers.iter().sum();
        meet.note(me);
        wait_until("the others have read", || meet.noted().len() >= 5);
        total
    };
    let tasks: Vec<_> =
        (0..4).map(|i| pool.apply_async(read, (numbers.clone(), meet.clone(), i))).collect();
    wait_until("all four have read", || meet.noted().len() == 4);
    let pids = pool.workers().into_iter().map(|worker| worker.pid);
    let everyone: Vec<u32> = pids.chain([std::process::id()]).collect();
    let sum_of =
        |field| everyone.iter().flat_map(|pid| mappings(*pid, BYTES, field)).sum::<usize>();
    let (mapped, proportional) = (sum_of("Rss"), sum_of("Pss"));
    meet.note(4);
    for task in tasks {
        assert_eq!(task.get(), Ok(BYTES as u64 / 8));
    }
    assert!(mapped >= 4 * BYTES / 1024, "{mapped} KiB are seen");
    assert!(proportional <= BYTES / 1024 + 4 * 4, "{proportional} KiB are used");
    assert_eq!(pool.apply(total, numbers), Ok(BYTES as u64 / 8));
}

#[test]
fn an_unused_shared_slice_is_freed() {
    const BYTES: usize = 3 << 20;
    let pool = Pool::new(2).unwrap();
    let numbers = SharedSlice::new(vec![1u64; BYTES / 8]).unwrap();
    let sums = pool.map(sum, (0..100).map(|_| (numbers.clone(), 0))).unwrap();
    assert_eq!(sums, [BYTES as u64 / 8; 100]);
    let pids: Vec<u32> = pool.workers().into_iter().map(|worker| worker.pid).collect();
    assert_eq!(mappings(std::process::id(), BYTES, "Size").len(), 1);
    drop(numbers);
    wait_until("the workers let go of it", || {
        pids.iter().all(|pid| mappings(*pid, BYTES, "Size").is_empty())
    });
    assert_eq!(mappings(std::process::id(), BYTES, "Size").len(), 0);
}

#[test]
fn no_process_can_write_a_shared_slice() {
    let numbers = SharedSlice::new([1u64; 512]).unwrap();
    let pool = Pool::new(1).unwrap();
    let overwrite = |numbers: SharedSlice<u64>| {
        // SAFETY: none. The test is about that.
        unsafe { numbers.as_ptr().cast_mut().write_volatile(2) }
    };
    let error = pool.apply(overwrite, numbers.clone()).unwrap_err();
    assert!(matches!(error.kind(), TaskErrorKind::Died { .. }), "{error}");
    assert_eq!(numbers[0], 1);
}

#[test]
fn five_thousand_values_and_locks_need_few_descriptors() {
    alone!("five_thousand_of_each");
}

#[test]
#[ignore = "run by `five_thousand_values_and_locks_need_few_descriptors`, alone"]
fn five_thousand_of_each() {
    let limit = libc::rlimit { rlim_cur: 1024, rlim_max: 1024 };
    // SAFETY: a plain system call.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0);
    let both: Vec<_> =
        (0..5000).map(|x| (SharedValue::new(x).unwrap(), Lock::new().unwrap())).collect();
    let pool = Pool::new(2).unwrap();
    let add = |(value, lock): (SharedValue<u64>, Lock)| {
        let _guard = lock.lock();
        *value.lock() += 1;
        // Created in a worker, and not shared with others.
        *SharedValue::new(7u64).unwrap().lock()
    };
    let made = pool.map(add, both.iter().step_by(10).cloned()).unwrap();
    assert_eq!(made, [7; 500]);
    for (x, (value, _)) in (0..).zip(&both) {
        assert_eq!(value.get(), x + u64::from(x % 10 == 0));
    }
}

/// Handles that a task creates and returns, inside of other types.
type Made = (Vec<SharedValue<u64>>, Option<SharedSlice<u32>>, SharedArray<u8>, Lock);

fn make(x: u64) -> Made {
    let values = (0..3).map(|i| SharedValue::new(x + i).unwrap()).collect();
    let array = SharedArray::new([7, 8, 9]).unwrap();
    (values, Some(SharedSlice::new([1, 2, x as u32]).unwrap()), array, Lock::new().unwrap())
}

#[test]
fn a_handle_in_a_result_is_the_same_memory_in_the_caller_and_outlives_its_worker() {
    let pool = Pool::new(2).unwrap();
    let (values, slice, array, lock) = pool.apply(make, 5).unwrap();
    assert_eq!(values.iter().map(SharedValue::get).collect::<Vec<_>>(), [5, 6, 7]);
    assert_eq!((slice.unwrap()[2], array.lock()[..].to_vec()), (5, vec![7, 8, 9]));
    for worker in pool.workers() {
        kill(worker.pid, libc::SIGKILL);
    }
    // This process sees changes of other workers, and they see its changes.
    let change = |(value, lock): (SharedValue<u64>, Lock)| {
        let _held = lock.lock();
        value.set(value.get() + 100);
    };
    pool.map(change, vec![(values[1].clone(), lock.clone()); 10]).unwrap();
    assert_eq!(values[1].get(), 1006);
    assert!(lock.try_lock().is_some());
    array.lock()[0] = 70;
    let first = |array: SharedArray<u8>| {
        let first = array.lock()[0];
        (first, array)
    };
    let (seen, array) = pool.apply(first, array).unwrap();
    assert_eq!((seen, array.lock()[0]), (70, 70));
}

#[test]
fn handles_come_back_from_every_kind_of_call_and_with_results_of_every_size() {
    let pool = Pool::new(2).unwrap();
    let check = |x: u64, made: Made| assert_eq!(made.0[2].get(), x + 2);
    (0..).zip(pool.map(make, 0..300).unwrap()).for_each(|(x, made)| check(x, made));
    (0..).zip(pool.imap(make, 0..100)).for_each(|(x, made)| check(x, made.unwrap()));
    assert_eq!(pool.imap_unordered(make, 0..100).filter(|made| made.is_ok()).count(), 100);
    check(1, pool.apply_async(make, 1).get().unwrap());
    check(1, procpool::Process::spawn(make, 1).unwrap().join().unwrap());
    pool.broadcast(make, 1).into_iter().for_each(|made| check(1, made.unwrap()));
    // Beside other results of one chunk, in a lane and in a region.
    let sized = |len: usize| {
        let value = (len % 3 == 1).then(|| SharedValue::new(len as u64).unwrap());
        (vec![1u8; len], value, "x".repeat(len))
    };
    let lens = [0, 1, 10, 100, 70_000, 200_000, 300_001, 3_000_001, 300_002, 13, 4];
    for options in [TaskOptions::new(), TaskOptions::new().chunk_size(4)] {
        let results = pool.with_options(options).map(sized, lens).unwrap();
        for (len, (bytes, value, text)) in lens.into_iter().zip(results) {
            assert_eq!((bytes.len(), text.len()), (len, len));
            let value = value.map(|value| value.get());
            assert_eq!(value, (len % 3 == 1).then_some(len as u64));
        }
    }
    // In a pool inside of a worker, whose own arguments have handles too.
    let nested = |given: SharedValue<u64>| {
        let (values, ..) = Pool::new(1).unwrap().apply(make, given.get()).unwrap();
        (values, given)
    };
    let (values, given) = pool.apply(nested, SharedValue::new(3).unwrap()).unwrap();
    assert_eq!((values[0].get(), given.get()), (3, 3));
}

#[test]
fn a_result_with_too_many_files_is_refused_and_its_worker_continues() {
    let pool = Pool::new(1).unwrap();
    let large = |count: usize| -> Vec<SharedSlice<u8>> {
        (0..count).map(|_| SharedSlice::new([1]).unwrap()).collect()
    };
    assert_eq!(pool.apply(large, 200).unwrap().len(), 200);
    let error = pool.apply(large, 201).unwrap_err();
    assert!(matches!(error.kind(), TaskErrorKind::Encode { side: ValueSide::Result, .. }));
    assert!(error.to_string().contains("a result may have 200"), "{error}");
    // There may be thousands of values that share their files.
    let small =
        |count: u64| -> Vec<_> { (0..count).map(|x| SharedValue::new(x).unwrap()).collect() };
    let values = pool.apply(small, 5000).unwrap();
    assert_eq!((values.len(), values[4999].get()), (5000, 4999));
    assert_eq!(pool.stats().restarts, 0);
}

#[test]
fn results_that_are_not_taken_leave_half_of_the_descriptors_to_the_program() {
    alone!("results_that_are_not_taken_leave_half_of_the_descriptors_to_the_program_alone");
}

#[test]
#[ignore = "run by the one before, alone"]
fn results_that_are_not_taken_leave_half_of_the_descriptors_to_the_program_alone() {
    let pool = Pool::new(1).unwrap();
    let limit = libc::rlimit { rlim_cur: 200, rlim_max: 200 };
    // SAFETY: a plain system call.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0);
    let tasks: Vec<_> = (0..100)
        .map(|x| pool.apply_async(|x: u8| [(); 3].map(|()| SharedSlice::new([x]).unwrap()), x))
        .collect();
    assert!(procpool::wait(&tasks, procpool::WaitFor::All, Some(crate::support::SOON)));
    let open = fs::read_dir("/proc/self/fd").unwrap().count();
    assert!(open < 160, "{open} are open");
    let results: Vec<_> = tasks.into_iter().map(procpool::Task::get).collect();
    let kept = results.iter().take_while(|result| result.is_ok()).count();
    assert_eq!(kept, 100 / 3, "three descriptors each");
    for result in &results[kept..] {
        let error = result.as_ref().unwrap_err().to_string();
        assert!(error.contains("take results sooner"), "{error}");
    }
    drop(results);
    // Refused results have closed their descriptors, and taken ones are no longer counted.
    assert!(pool.apply(|x: u8| SharedSlice::new([x]).unwrap(), 1).is_ok());
}

/// Reads the rest of a file.
fn read_rest(file: SharedFd) -> String {
    let mut text = String::new();
    fs::File::from(file.into_owned().unwrap()).read_to_string(&mut text).unwrap();
    text
}

#[test]
fn an_open_file_arrives_open_at_its_position_and_closed_on_exec() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"first second").unwrap();
    file.seek(SeekFrom::Start(6)).unwrap();
    let pool = Pool::new(2).unwrap();
    let shared = SharedFd::from(file.try_clone().unwrap());
    let flags = |file: SharedFd| {
        let fd = file.as_fd().as_raw_fd();
        // SAFETY: a plain system call.
        unsafe { libc::fcntl(fd, libc::F_GETFD) }
    };
    assert_eq!(pool.apply(flags, shared.clone()), Ok(libc::FD_CLOEXEC));
    assert_eq!(pool.apply(read_rest, shared.clone()).unwrap(), "second");
    assert_eq!(file.stream_position().unwrap(), 12, "they share the position");
    // Each descriptor arrives, although all are of one file.
    let path = tempfile::NamedTempFile::new().unwrap();
    fs::write(&path, "0123456789").unwrap();
    let at = |position: u64| {
        let mut file = fs::File::open(&path).unwrap();
        file.seek(SeekFrom::Start(position)).unwrap();
        SharedFd::from(file)
    };
    let both = |(one, other): (SharedFd, SharedFd)| (read_rest(one), read_rest(other));
    assert_eq!(pool.apply(both, (at(7), at(9))), Ok(("789".to_owned(), "9".to_owned())));
    let files: Vec<_> = (0..10).map(at).collect();
    for (position, rest) in (0..).zip(pool.map(read_rest, files).unwrap()) {
        assert_eq!(rest, "0123456789"[position..]);
    }
    // In an initializer, in a context, and in a result.
    let initialized = Pool::builder().workers(1).initializer(|file: SharedFd| file, at(3));
    let initialized = initialized.build().unwrap();
    let state = |()| procpool::with_state(|file: &mut SharedFd| read_rest(file.clone())).unwrap();
    assert_eq!(initialized.apply(state, ()).unwrap(), "3456789");
    let context = |file: &SharedFd, _: u8| read_rest(file.clone()).len();
    assert_eq!(pool.map_with(at(8), context, [0; 4]).unwrap().iter().sum::<usize>(), 2);
    let open = |path: std::path::PathBuf| SharedFd::from(fs::File::open(path).unwrap());
    assert_eq!(read_rest(pool.apply(open, path.path().to_owned()).unwrap()), "0123456789");
}

#[test]
fn a_listening_socket_is_accepted_from_in_workers_and_a_connection_is_served_there() {
    let pool = Pool::new(2).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serve = |listener: SharedFd| {
        let listener = TcpListener::from(listener.into_owned().unwrap());
        let (mut connection, _) = listener.accept().unwrap();
        connection.write_all(format!("{}", std::process::id()).as_bytes()).unwrap();
        SharedFd::from(connection)
    };
    let task = pool.apply_async(serve, SharedFd::from(listener));
    let mut client = TcpStream::connect(address).unwrap();
    // The connection returns in the result and is closed here.
    let mut server = TcpStream::from(task.get().unwrap().into_owned().unwrap());
    server.write_all(b"!").unwrap();
    drop(server);
    let mut text = String::new();
    client.read_to_string(&mut text).unwrap();
    let pids: Vec<_> = pool.workers().iter().map(|worker| format!("{}!", worker.pid)).collect();
    assert!(pids.contains(&text), "{text} of {pids:?}");
}

#[test]
fn in_a_call_with_a_context_each_items_descriptor_is_closed_with_its_item() {
    let pool = Pool::builder().workers(1).build().unwrap();
    let context = (SharedFd::from(tempfile::tempfile().unwrap()), SharedValue::new(7).unwrap());
    let (ours, theirs): (Vec<_>, Vec<_>) = (0..50)
        .map(|_| {
            let (ours, theirs) = UnixStream::pair().unwrap();
            ours.set_read_timeout(Some(crate::support::SOON)).unwrap();
            (ours, SharedFd::from(theirs))
        })
        .unzip();
    type Context = (SharedFd, SharedValue<u64>);
    fn write((_, value): &Context, stream: SharedFd) -> usize {
        let mut stream = UnixStream::from(stream.into_owned().unwrap());
        stream.write_all(format!("{}", value.get()).as_bytes()).unwrap();
        fs::read_dir("/proc/self/fd").unwrap().count()
    }
    let mut open = Vec::new();
    let mut results = pool.imap_with(context, write, theirs).unwrap();
    for mut ours in ours {
        open.push(results.next().unwrap().unwrap());
        let mut text = String::new();
        ours.read_to_string(&mut text).unwrap();
        assert_eq!(text, "7", "the worker has closed it");
    }
    assert_eq!(open.iter().min(), open.iter().max(), "{open:?}");
}

#[test]
fn an_eventfd_and_a_pipe_wake_the_other_side() {
    let pool = Pool::new(2).unwrap();
    // SAFETY: a plain system call, whose result is a new descriptor.
    let [one, other] = [(); 2].map(|()| unsafe {
        SharedFd::from(OwnedFd::from_raw_fd(libc::eventfd(0, libc::EFD_CLOEXEC)))
    });
    let wait = |event: SharedFd| {
        let mut count = [0; 8];
        fs::File::from(event.into_owned().unwrap()).read_exact(&mut count).unwrap();
        u64::from_ne_bytes(count)
    };
    // Two eventfds have one inode.
    let tasks = [&one, &other].map(|event| pool.apply_async(wait, event.clone()));
    for (event, count) in [(&other, 5u64), (&one, 3)] {
        let mut event = fs::File::from(event.clone().into_owned().unwrap());
        event.write_all(&count.to_ne_bytes()).unwrap();
    }
    assert_eq!(tasks.map(|task| task.get().unwrap()), [3, 5]);
    // A reader sees the end when the task with the writer is done, not when its worker ends.
    let (mut reader, writer) = std::io::pipe().unwrap();
    let write = |writer: SharedFd| {
        fs::File::from(writer.into_owned().unwrap()).write_all(b"all of it").unwrap();
    };
    pool.apply(write, SharedFd::from(writer)).unwrap();
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "all of it");
}

#[test]
fn a_handle_outside_of_a_call_is_an_error_that_names_the_remedy() {
    let file = SharedFd::from(tempfile::tempfile().unwrap());
    let error = serde_json::to_string(&file).unwrap_err().to_string();
    assert!(error.contains("in an argument, a result or a channel's message"), "{error}");
    let slice = SharedSlice::new([1u8]).unwrap();
    assert_eq!(serde_json::to_string(&slice).unwrap_err().to_string(), error);
    // Neither can a value that a task encodes by itself.
    let hidden = |file: SharedFd| serde_json::to_string(&file).unwrap_err().to_string();
    assert_eq!(Pool::new(1).unwrap().apply(hidden, file).unwrap(), error);
}

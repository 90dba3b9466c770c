//! Messages between processes: each arrives once and whole, whichever process is killed, and no process waits
//! for a dead one.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use crate::support::{SOON, Secret, alone, kill, wait_until};
use procpool::Pool;
use procpool::channel::{
    Receiver, RecvError, SendError, SendErrorReason, Sender, bounded, unbounded,
};
use procpool::shared::{SharedArray, SharedFd, SharedSlice, SharedValue};

const A_MOMENT: Duration = Duration::from_millis(20);

/// Creates a pool in which one task per worker runs at the same time.
fn crew(workers: usize) -> Pool {
    Pool::builder().workers(workers).chunk_size(1).build().unwrap()
}

/// Where processes that will be killed store their PIDs.
type Pids = SharedArray<AtomicU64>;

fn kill_at(pids: &Pids, index: usize) {
    wait_until("it has said who it is", || pids[index].load(SeqCst) != 0);
    kill(pids[index].load(SeqCst) as u32, libc::SIGKILL);
}

fn report_at(pids: &Pids, index: usize) {
    pids[index].store(std::process::id().into(), SeqCst);
}

#[test]
fn messages_arrive_in_the_order_in_which_they_were_sent() {
    let (sender, receiver) = unbounded().unwrap();
    let pool = Pool::new(1).unwrap();
    let send = |words: Sender<(u32, String)>| {
        (0..10_000).for_each(|x| words.send((x, x.to_string())).unwrap());
    };
    let task = pool.apply_async(send, sender);
    let expected = (0..10_000).map(|x| (x, x.to_string()));
    assert!(receiver.iter().map(Result::unwrap).eq(expected));
    assert_eq!(receiver.recv(), Err(RecvError::Disconnected));
    task.get().unwrap();
}

#[test]
fn messages_of_all_sizes_arrive_whole() {
    // The smallest sizes, and those around a window and around large messages.
    let sizes = [0, 1, 7, 8, 9, 4096, 65_520, 65_528, 65_529, 65_537, 262_136, 262_144, 5_000_000];
    let messages: Vec<Vec<u8>> =
        (0..260).map(|i| vec![i as u8; sizes[i % sizes.len()] / (1 + i / 60)]).collect();
    let (sender, receiver) = bounded(3).unwrap();
    let (echoes, echoed) = unbounded().unwrap();
    let pool = Pool::new(1).unwrap();
    let echo = |(receiver, echoes): (Receiver<Vec<u8>>, Sender<Vec<u8>>)| {
        receiver.iter().for_each(|message| echoes.send(message.unwrap()).unwrap());
    };
    let task = pool.apply_async(echo, (receiver, echoes));
    std::thread::scope(|scope| {
        scope.spawn(|| messages.iter().for_each(|message| sender.send(message.clone()).unwrap()));
        for message in &messages {
            assert!(echoed.recv().unwrap() == *message, "one of {} bytes", message.len());
        }
    });
    drop(sender);
    task.get().unwrap();
}

#[test]
fn a_full_channel_makes_senders_wait() {
    let (sender, receiver) = bounded::<u64>(3).unwrap();
    let pool = Pool::new(1).unwrap();
    let sent = SharedValue::<AtomicU64>::atomic(0).unwrap();
    let send = |(sender, sent): (Sender<u64>, SharedValue<AtomicU64>)| {
        for x in 0..100 {
            sender.send(x).unwrap();
            sent.fetch_add(1, SeqCst);
        }
    };
    let task = pool.apply_async(send, (sender.clone(), sent.clone()));
    wait_until("three are sent", || sent.load(SeqCst) == 3);
    assert_eq!(sender.try_send(7).unwrap_err().reason, SendErrorReason::Full);
    let error = sender.send_timeout(7, A_MOMENT).unwrap_err();
    assert_eq!((error.value, error.reason), (7, SendErrorReason::TimedOut));
    for x in 0..100 {
        assert!(sent.load(SeqCst) <= x + 4);
        assert_eq!(receiver.recv(), Ok(x));
    }
    task.get().unwrap();
    assert_eq!(receiver.try_recv(), Err(RecvError::Empty));
}

#[test]
fn waiters_are_woken_when_the_last_peer_is_dropped() {
    let (sender, receiver) = unbounded::<u64>().unwrap();
    let other = sender.clone();
    assert_eq!(receiver.try_recv(), Err(RecvError::Empty));
    assert_eq!(receiver.recv_timeout(A_MOMENT), Err(RecvError::TimedOut));
    sender.send(1).unwrap();
    drop((sender, other));
    assert_eq!(receiver.try_recv(), Ok(1));
    assert_eq!(receiver.try_recv(), Err(RecvError::Disconnected));

    let (sender, receiver) = unbounded::<u64>().unwrap();
    drop(receiver);
    let error = sender.send(2).unwrap_err();
    assert_eq!((error.value, error.reason), (2, SendErrorReason::Disconnected));

    // In other processes, and for processes that are already waiting.
    let pool = crew(2);
    let receive = |receiver: Receiver<u64>| receiver.recv() == Err(RecvError::Disconnected);
    let send = |sender: Sender<u64>| {
        let refused = (0..).find_map(|x| sender.send(x).err()).unwrap();
        refused.reason == SendErrorReason::Disconnected
    };
    let (sender, receiver) = unbounded().unwrap();
    let task = pool.apply_async(receive, receiver);
    wait_until("it runs", || pool.stats().running == 1);
    drop(sender);
    assert_eq!(task.get(), Ok(true));
    let (sender, receiver) = bounded(1).unwrap();
    let task = pool.apply_async(send, sender);
    assert_eq!(receiver.recv(), Ok(0));
    drop(receiver);
    assert_eq!(task.get(), Ok(true));
}

#[test]
fn waiters_are_woken_when_the_last_peer_is_killed() {
    let pool = crew(1);
    let pids = Pids::atomic([0; 3]).unwrap();
    let hold = |(pids, index, _sender): (Pids, usize, Sender<u64>)| {
        report_at(&pids, index);
        std::thread::sleep(SOON);
    };
    let (sender, receiver) = unbounded::<u64>().unwrap();
    let task = pool.apply_async(hold, (pids.clone(), 0, sender));
    kill_at(&pids, 0);
    assert_eq!(receiver.recv(), Err(RecvError::Disconnected));
    assert!(task.get().is_err());

    let hold = |(pids, index, _receiver): (Pids, usize, Receiver<u64>)| {
        report_at(&pids, index);
        std::thread::sleep(SOON);
    };
    let (sender, receiver) = bounded::<u64>(1).unwrap();
    let task = pool.apply_async(hold, (pids.clone(), 1, receiver));
    sender.send(1).unwrap();
    kill_at(&pids, 1);
    assert_eq!(sender.send(2).unwrap_err().reason, SendErrorReason::Disconnected);
    assert!(task.get().is_err());

    let (sender, receiver) = unbounded::<u64>().unwrap();
    let task = pool.apply_async(hold, (pids.clone(), 2, receiver));
    kill_at(&pids, 2);
    let refused = (0..).find_map(|x| sender.send(x).err()).unwrap();
    assert_eq!(refused.reason, SendErrorReason::Disconnected);
    assert!(task.get().is_err());
}

/// The shared state of the large exchange.
type Exchange = (SharedArray<AtomicU8>, SharedValue<AtomicU64>, Pids);

/// Four producers and four consumers exchange a million messages. One of each is killed.
#[test]
fn a_million_messages_arrive_once_while_a_producer_and_a_consumer_are_killed() {
    const EACH: u64 = 250_000;
    fn produce((sender, (_, _, pids), me): (Sender<u64>, Exchange, u64)) {
        report_at(&pids, me as usize);
        (me * EACH..(me + 1) * EACH).for_each(|id| sender.send(id).unwrap());
    }
    fn consume((receiver, (seen, total, pids), me): (Receiver<u64>, Exchange, u64)) {
        report_at(&pids, 4 + me as usize);
        let mut last = [None; 4];
        for id in receiver.iter().map(Result::unwrap) {
            seen[id as usize].fetch_add(1, SeqCst);
            total.fetch_add(1, SeqCst);
            let last = last[(id / EACH) as usize].replace(id);
            assert!(last < Some(id), "{id} after {last:?}");
        }
    }
    let exchange: Exchange = (
        SharedArray::<AtomicU8>::atomic(vec![0; 4 * EACH as usize]).unwrap(),
        SharedValue::<AtomicU64>::atomic(0).unwrap(),
        Pids::atomic([0; 8]).unwrap(),
    );
    let (sender, receiver) = bounded(10_000).unwrap();
    let pool = crew(8);
    let consumers: Vec<_> = (0..4)
        .map(|me| pool.apply_async(consume, (receiver.clone(), exchange.clone(), me)))
        .collect();
    let producers: Vec<_> = (0..4)
        .map(|me| pool.apply_async(produce, (sender.clone(), exchange.clone(), me)))
        .collect();
    drop((sender, receiver));
    let (seen, total, pids) = &exchange;
    wait_until("they are well under way", || total.load(SeqCst) > EACH / 4);
    kill_at(pids, 1);
    wait_until("they go on", || total.load(SeqCst) > EACH);
    kill_at(pids, 4 + 2);
    let produced: Vec<_> = producers.into_iter().map(|task| task.get().is_ok()).collect();
    assert_eq!(produced, [true, false, true, true]);
    let consumed: Vec<_> = consumers.into_iter().map(|task| task.get().is_ok()).collect();
    assert_eq!(consumed, [true, true, false, true]);
    // Each arrived once, except for the message that the killed consumer had just taken and those that the
    // killed producer has not sent.
    let counts: Vec<u8> = seen.iter().map(|count| count.load(SeqCst)).collect();
    assert!(counts.iter().all(|count| *count <= 1));
    let (killed, lived): (Vec<_>, Vec<_>) =
        (0..).zip(counts).partition(|(id, _)| id / EACH == 1u64);
    let end = killed.iter().rposition(|(_, count)| *count == 1).map_or(0, |last| last + 1);
    let lost = lived.iter().chain(&killed[..end]).filter(|(_, count)| *count == 0).count();
    assert!(lost <= 1, "{lost} are lost");
    assert!((end as u64) < EACH, "it was killed before its end");
}

#[test]
fn senders_killed_in_the_middle_of_large_messages_leave_no_part_of_one() {
    fn flood((sender, pids, me): (Sender<Vec<u8>>, Pids, usize)) {
        report_at(&pids, me);
        for x in 0.. {
            sender.send(vec![x; 1_000_000 + 1000 * x as usize]).unwrap();
            sender.send(vec![x; 100]).unwrap();
            if x == 255 {
                break;
            }
        }
    }
    let (sender, receiver) = bounded::<Vec<u8>>(4).unwrap();
    let pids = Pids::atomic([0; 10]).unwrap();
    let pool = crew(2);
    for victim in 0..10 {
        let task = pool.apply_async(flood, (sender.clone(), pids.clone(), victim));
        for message in receiver.iter().map(Result::unwrap).take(1 + 3 * victim) {
            assert!(message.iter().all(|x| *x == message[0]), "a message is mixed");
        }
        kill_at(&pids, victim);
        assert!(task.get().is_err());
        for message in receiver.try_iter().map(Result::unwrap) {
            assert!(message.iter().all(|x| *x == message[0]), "a message is mixed");
        }
    }
    sender.send(vec![1]).unwrap();
    assert_eq!(receiver.recv().unwrap(), [1]);
}

#[test]
fn receivers_killed_at_any_time_leave_the_rest_to_the_others() {
    fn take((receiver, pids, me): (Receiver<u64>, Pids, usize)) {
        report_at(&pids, me);
        receiver.iter().for_each(drop);
    }
    let (sender, receiver) = unbounded().unwrap();
    let pids = Pids::atomic([0; 20]).unwrap();
    let pool = crew(1);
    for victim in 0..20 {
        let task = pool.apply_async(take, (receiver.clone(), pids.clone(), victim));
        (0..5000).for_each(|x| sender.send(x).unwrap());
        kill_at(&pids, victim);
        assert!(task.get().is_err());
        sender.send(u64::MAX).unwrap();
        assert_eq!(receiver.iter().find(|x| *x == Ok(u64::MAX)), Some(Ok(u64::MAX)));
        assert_eq!(receiver.try_recv(), Err(RecvError::Empty));
    }
}

#[test]
fn ends_can_be_kept_by_initializers_and_passed_on_to_workers_of_workers() {
    let (sender, receiver) = unbounded::<String>().unwrap();
    let pool = Pool::builder().workers(2);
    let pool = pool.initializer(|sender: Sender<String>| sender, sender.clone()).build().unwrap();
    let tell = |x: u32| {
        procpool::with_state(|sender: &mut Sender<String>| sender.send(x.to_string()).unwrap())
    };
    pool.map(tell, 0..100).unwrap();
    let mut told: Vec<u32> = receiver.try_iter().map(|x| x.unwrap().parse().unwrap()).collect();
    told.sort_unstable();
    assert!(told.into_iter().eq(0..100));
    drop(pool);

    let nested = |sender: Sender<String>| {
        let send = |sender: Sender<String>| sender.send("from below".to_owned()).unwrap();
        Pool::new(1).unwrap().apply(send, sender).unwrap();
    };
    Pool::new(1).unwrap().apply(nested, sender).unwrap();
    let told: Result<Vec<String>, _> = receiver.into_iter().collect();
    assert_eq!(told.unwrap(), ["from below"]);
}

#[test]
fn received_messages_use_no_memory() {
    alone!("six_thousand_messages");
}

#[test]
#[ignore = "run by `received_messages_use_no_memory`, alone"]
fn six_thousand_messages() {
    let (sender, receiver) = unbounded::<Vec<u8>>().unwrap();
    // Only the log has this length.
    let used = || {
        let files = fs::read_dir("/proc/self/fd").unwrap();
        let files = files.filter_map(|fd| fs::metadata(fd.unwrap().path()).ok());
        files.filter(|file| file.len() == 1 << 62).map(|file| file.blocks() * 512).max().unwrap()
    };
    for _ in 0..200 {
        for size in [1, 1000, 100_000] {
            (0..10).for_each(|_| sender.send(vec![0; size]).unwrap());
        }
        assert_eq!(receiver.try_iter().count(), 30);
    }
    assert!(used() <= 2 << 20, "{} bytes", used());
}

#[test]
fn an_end_of_a_finished_task_does_not_keep_the_channel_open_whatever_shared_its_chunk() {
    let pool = Pool::new(1).unwrap();
    let produce = |sender: Sender<u64>| sender.send(1).unwrap();
    let consume = |receiver: Receiver<u64>| receiver.iter().count();
    // Tasks this short are soon sent in large chunks.
    for _ in 0..50 {
        let tasks: Vec<_> = (0..20)
            .map(|_| {
                let (sender, receiver) = unbounded().unwrap();
                let produces = pool.apply_async(produce, sender);
                (produces, pool.apply_async(consume, receiver))
            })
            .collect();
        for (mut produces, mut consumes) in tasks {
            assert_eq!(produces.get_timeout(SOON), Some(Ok(())));
            assert_eq!(consumes.get_timeout(SOON), Some(Ok(1)));
        }
    }
    // The same, as items of one call.
    let either = |(sender, receiver): (Option<Sender<u64>>, Option<Receiver<u64>>)| {
        sender.into_iter().for_each(|sender| sender.send(1).unwrap());
        receiver.map_or(0, |receiver| receiver.iter().count())
    };
    let ends = (0..50).flat_map(|_| {
        let (sender, receiver) = unbounded().unwrap();
        [(Some(sender), None), (None, Some(receiver))]
    });
    let counts = pool.map_async(either, ends).get_timeout(SOON).expect("soon").unwrap();
    assert_eq!(counts, [0, 1].repeat(50));
}

#[test]
fn a_value_that_cannot_be_a_message_is_returned() {
    let (sender, receiver) = unbounded().unwrap();
    let shared = SharedSlice::new([1u8]).unwrap();
    let SendError { value, reason } = sender.send((shared, Some(Secret))).unwrap_err();
    assert_eq!(*value.0, [1]);
    assert!(matches!(&reason, SendErrorReason::Encode(reason) if reason.contains("a secret")));
    // It is no longer in the channel.
    sender.send((value.0, None)).unwrap();
    assert_eq!(*receiver.recv().unwrap().0, [1]);
}

#[test]
fn an_end_that_arrives_too_late_is_disconnected() {
    let (sender, receiver) = unbounded::<u64>().unwrap();
    let pool = crew(1);
    let holds = pool.apply_async(crate::support::sleepy, 50);
    let late = pool.apply_async(|receiver: Receiver<u64>| receiver.iter().count(), receiver);
    sender.send(1).unwrap();
    drop(sender);
    assert_eq!((holds.get(), late.get()), (Ok(50), Ok(1)));
    let (sender, receiver) = unbounded::<u64>().unwrap();
    let holds = pool.apply_async(crate::support::sleepy, 50);
    let late = pool.apply_async(|sender: Sender<u64>| sender.send(1).is_err(), sender);
    drop(receiver);
    assert_eq!((holds.get(), late.get()), (Ok(50), Ok(true)));
}

#[test]
fn iterating_continues_after_a_message_that_cannot_be_decoded() {
    /// Any number can be encoded, and only numbers below ten can be decoded.
    #[derive(Debug, PartialEq, serde::Serialize)]
    struct Digit(u64);
    impl<'de> serde::Deserialize<'de> for Digit {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            match u64::deserialize(deserializer)? {
                x @ ..10 => Ok(Self(x)),
                _ => Err(serde::de::Error::custom("it has two digits")),
            }
        }
    }
    let (sender, receiver) = unbounded().unwrap();
    let send_all = || [1, 10, 2].into_iter().for_each(|x| sender.send(Digit(x)).unwrap());
    let check = |received: Vec<Result<Digit, RecvError>>| {
        let [Ok(Digit(1)), Err(RecvError::Decode(reason)), Ok(Digit(2))] = &received[..] else {
            panic!("{received:?}")
        };
        assert!(reason.contains("two digits"), "{reason}");
    };
    send_all();
    check(receiver.try_iter().collect());
    send_all();
    send_all();
    drop(sender);
    check(receiver.iter().take(3).collect());
    check(receiver.into_iter().collect());
}

#[test]
fn an_end_in_a_result_is_open_in_the_caller() {
    let pool = Pool::new(2).unwrap();
    let start = |count: u64| {
        let (sender, receiver) = unbounded().unwrap();
        (0..count).for_each(|x| sender.send(x).unwrap());
        receiver
    };
    let receivers: Vec<Receiver<u64>> = pool.map(start, 0..50).unwrap();
    for (count, receiver) in (0..).zip(receivers) {
        assert!(receiver.iter().map(Result::unwrap).eq(0..count));
        assert_eq!(receiver.recv(), Err(RecvError::Disconnected));
    }
    // The worker keeps the other end, and both continue.
    let stay = |()| {
        let (sender, receiver) = bounded::<u64>(1).unwrap();
        std::thread::spawn(move || (0..100).for_each(|x| sender.send(x).unwrap()));
        receiver
    };
    let receiver = pool.apply(stay, ()).unwrap();
    assert!(receiver.iter().map(Result::unwrap).eq(0..100));
}

#[test]
fn messages_carry_ends_and_handles_between_any_processes() {
    type Call = (u64, Sender<(u64, SharedValue<u64>)>);
    /// Replies to each call on the channel that came with it.
    fn serve(calls: Receiver<Call>) -> u64 {
        let mut served = 0;
        for call in calls {
            let (x, answers) = call.unwrap();
            answers.send((x, SharedValue::new(x * x).unwrap())).unwrap();
            served += 1;
        }
        served
    }
    let pool = crew(2);
    let (sender, calls) = unbounded::<Call>().unwrap();
    let servers = [(); 2].map(|()| pool.apply_async(serve, calls.clone()));
    drop(calls);
    for x in 0..300 {
        let (answers, answer) = bounded(1).unwrap();
        sender.send((x, answers)).unwrap();
        let (same, square) = answer.recv().unwrap();
        assert_eq!((same, square.get()), (x, x * x));
        assert_eq!(answer.recv().map(drop), Err(RecvError::Disconnected));
    }
    drop(sender);
    assert_eq!(servers.into_iter().map(|server| server.get().unwrap()).sum::<u64>(), 300);
}

#[test]
fn an_end_in_a_message_keeps_its_channel_open_until_the_message_is_gone() {
    let (outer, inner) = unbounded::<Receiver<u64>>().unwrap();
    let (sender, receiver) = unbounded().unwrap();
    outer.send(receiver).unwrap();
    // The only receiver is in a message.
    sender.send(7).unwrap();
    let received = inner.recv().unwrap();
    assert_eq!(received.recv(), Ok(7));
    outer.send(received).unwrap();
    sender.send(8).unwrap();
    drop(inner);
    wait_until("the message is gone", || {
        sender.send_timeout(9, A_MOMENT).is_err_and(|error| {
            assert_eq!(error.reason, SendErrorReason::Disconnected);
            true
        })
    });
}

#[test]
fn messages_with_handles_wait_for_space_and_keep_their_order() {
    let pool = Pool::new(1).unwrap();
    let (sender, receiver) = unbounded::<(u64, Option<SharedFd>)>().unwrap();
    let send = |sender: Sender<(u64, Option<SharedFd>)>| {
        let file = SharedFd::from(fs::File::open("/dev/null").unwrap());
        (0..2000).for_each(|x| sender.send((x, (x % 3 > 0).then(|| file.clone()))).unwrap());
    };
    let task = pool.apply_async(send, sender.clone());
    let (other, _kept) = unbounded::<SharedFd>().unwrap();
    let file = SharedFd::from(fs::File::open("/dev/null").unwrap());
    let full = (0..100_000).find_map(|_| other.try_send(file.clone()).err()).unwrap();
    assert_eq!(full.reason, SendErrorReason::Full);
    let error = other.send_timeout(file, A_MOMENT).unwrap_err();
    assert_eq!(error.reason, SendErrorReason::TimedOut);
    drop(sender);
    let mut expected = 0..;
    for message in &mut receiver.iter() {
        let (x, file) = message.unwrap();
        assert_eq!((x, file.is_some()), (expected.next().unwrap(), x % 3 > 0));
    }
    assert_eq!(expected.start, 2000);
    task.get().unwrap();
}

#[test]
fn a_task_that_writes_to_every_descriptor_it_has_costs_a_channel_no_message_with_handles() {
    fn send((sender, _receiver): (Sender<SharedValue<u64>>, Receiver<SharedValue<u64>>)) {
        for x in 0..5 {
            for fd in 3..1200 {
                // SAFETY: a plain system call on a constant.
                unsafe { libc::send(fd, b"hello".as_ptr().cast(), 5, libc::MSG_DONTWAIT) };
            }
            sender.send(SharedValue::new(x).unwrap()).unwrap();
        }
    }
    let pool = Pool::new(1).unwrap();
    let (sender, receiver) = unbounded().unwrap();
    pool.apply(send, (sender, receiver.clone())).unwrap();
    let received: Vec<u64> = receiver.iter().map(|value| value.unwrap().get()).collect();
    assert_eq!(received, [0, 1, 2, 3, 4]);
}

#[test]
fn a_message_with_too_many_files_is_refused_with_the_remedy() {
    let (sender, receiver) = unbounded().unwrap();
    let slices = |count| (0..count).map(|_| SharedSlice::new([1u8]).unwrap()).collect::<Vec<_>>();
    let error = sender.send(slices(201)).unwrap_err();
    assert!(error.to_string().contains("send several"), "{error}");
    assert_eq!(error.value.len(), 201);
    sender.send(slices(200)).unwrap();
    assert_eq!(receiver.recv().unwrap().len(), 200);
}

#[test]
fn a_process_killed_while_messages_with_handles_are_under_way_costs_no_other_any() {
    type Message = (u64, SharedValue<u64>);
    fn send((sender, pids, index): (Sender<Message>, Pids, usize)) {
        report_at(&pids, index);
        for x in 0.. {
            sender.send((x, SharedValue::new(x).unwrap())).unwrap();
        }
    }
    fn receive((receiver, pids, index): (Receiver<Message>, Pids, usize)) {
        report_at(&pids, index);
        while receiver.recv().is_ok() {}
    }
    let pool = crew(4);
    let pids = SharedArray::<AtomicU64>::atomic([0; 40]).unwrap();
    let (sender, receiver) = bounded::<Message>(8).unwrap();
    let mut killed = Vec::new();
    for round in 0..10 {
        let index = 4 * round;
        let tasks: Vec<_> = (0..2)
            .map(|i| pool.apply_async(send, (sender.clone(), pids.clone(), index + i)))
            .collect();
        let others: Vec<_> = (2..4)
            .map(|i| pool.apply_async(receive, (receiver.clone(), pids.clone(), index + i)))
            .collect();
        for _ in 0..20 {
            // Each message is whole: the number and the value belong together.
            let (x, value) = receiver.recv_timeout(SOON).unwrap();
            assert_eq!(value.get(), x);
        }
        (index..index + 4).for_each(|index| kill_at(&pids, index));
        killed.extend(tasks.into_iter().chain(others).map(|task| task.get().is_err()));
    }
    assert!(killed.into_iter().all(|is_killed| is_killed));
    // The dead processes left nothing that blocks the others.
    while receiver.recv_timeout(A_MOMENT).is_ok() {}
    let task = pool.apply_async(
        |sender: Sender<Message>| sender.send((1, SharedValue::new(1).unwrap())).unwrap(),
        sender,
    );
    assert_eq!(receiver.recv_timeout(SOON).unwrap().1.get(), 1);
    task.get().unwrap();
    assert_eq!(receiver.recv().map(drop), Err(RecvError::Disconnected));
}

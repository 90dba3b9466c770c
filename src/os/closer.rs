//! Closes descriptors that workers have sent and whose close may wait for another process: for the peer of a connection,
//! or for the server of a file system. A worker that has been taken over may see to it that the wait has no end.
//!
//! Threads of their own do so, one more for each that seems to be lost, and end when nothing is left to close. Beyond
//! [`MOST_THREADS`], descriptors stay open.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

use super::process::PerProcess;
use super::signals;

/// More than this are lost only to a worker that means harm.
const MOST_THREADS: usize = 16;

/// Descriptors that wait while a thread closes others, before one more starts.
const BACKLOG: usize = 64;

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<OwnedFd>,
    threads: usize,
}

static STATE: PerProcess<Mutex<State>> = PerProcess::new();

/// Has what workers send closed here.
pub(crate) fn install() {
    procpool_worker::passed::set_closer(close);
}

fn close(fd: OwnedFd) {
    let mut state = STATE.get().lock().unwrap_or_else(PoisonError::into_inner);
    state.waiting.push_back(fd);
    let wanted = state.waiting.len().div_ceil(BACKLOG);
    if state.threads >= wanted.min(MOST_THREADS) {
        return;
    }
    let thread = std::thread::Builder::new().name("procpool-close".to_owned());
    // Without a thread, they wait for the next one.
    if signals::blocked(|| thread.spawn(close_waiting)).is_ok() {
        state.threads += 1;
    }
}

fn close_waiting() {
    let lock = || STATE.get().lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let mut state = lock();
        let Some(fd) = state.waiting.pop_front() else {
            state.threads -= 1;
            return;
        };
        drop(state);
        drop(fd);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    use procpool_worker::passed::PassedFd;
    use rustix::net::sockopt::set_socket_linger;

    use super::*;

    #[test]
    fn a_connection_whose_close_waits_for_its_peer_keeps_nobody_waiting() {
        install();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut connection = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (peer, _) = listener.accept().unwrap();
        connection.set_nonblocking(true).unwrap();
        // More than the peer's buffer takes, and it reads nothing.
        while connection.write(&[0; 65536]).is_ok() {}
        set_socket_linger(&connection, Some(Duration::from_secs(60))).unwrap();
        let begun = Instant::now();
        drop(PassedFd::from(OwnedFd::from(connection)));
        let (reader, mut other) = std::io::pipe().unwrap();
        drop(PassedFd::from(OwnedFd::from(reader)));
        assert!(other.write(&[1]).is_err(), "what can be closed at once is");
        assert!(begun.elapsed() < Duration::from_secs(20));
        // The peer's end lets it go.
        drop(peer);
        let deadline = Instant::now() + Duration::from_secs(30);
        while STATE.get().lock().unwrap().threads > 0 {
            assert!(Instant::now() < deadline, "the thread ends when nothing is left");
            std::thread::yield_now();
        }
    }
}

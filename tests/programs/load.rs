//! Loads examples/service.rs over TCP, for its test and its benchmark: connections that send one upload after the
//! other and check each answer.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// What the connections have seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// How long each good upload took.
    pub(crate) good: Vec<Duration>,
    pub(crate) crashes: usize,
    pub(crate) hangs: usize,
    /// Answers 503.
    pub(crate) shed: usize,
}

/// One answer.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

/// A connection that is kept.
pub(crate) struct Connection(BufReader<TcpStream>);

impl Connection {
    pub(crate) fn new(to: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect(to)?;
        stream.set_nodelay(true)?;
        // Longer than the service waits for anything.
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Sends a request and waits for its answer.
    pub(crate) fn ask(&mut self, method: &str, path: &str, body: &[u8]) -> std::io::Result<Answer> {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        self.0.get_mut().write_all(&[head.as_bytes(), body].concat())?;
        let malformed = |line: &str| std::io::Error::other(format!("malformed: {line:?}"));
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| malformed(&line))?;
        let mut len = 0;
        loop {
            line.clear();
            self.0.read_line(&mut line)?;
            let header = line.trim_end().to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(text) = header.strip_prefix("content-length:") {
                len = text.trim().parse().map_err(|_| malformed(&line))?;
            }
        }
        let mut body = vec![0; len];
        self.0.read_exact(&mut body)?;
        Ok(Answer { status, body })
    }
}

/// Sends uploads over so many connections for so long. With `is_bad`, one in a hundred crashes the decoder, and one in a
/// thousand hangs it.
pub(crate) fn load(
    to: SocketAddr,
    connections: usize,
    limit: Duration,
    picture: &[u8],
    is_bad: bool,
) -> Seen {
    let deadline = Instant::now() + limit;
    let run = |connection: usize| {
        let mut seen = Seen::default();
        let mut link = Connection::new(to).expect("the service listens");
        // Each connection starts elsewhere, so that the bad ones do not come at once.
        let mut number = connection * 617;
        while Instant::now() < deadline {
            number += 1;
            let upload: &[u8] = match number {
                _ if is_bad && number.is_multiple_of(1000) => b"hang!",
                _ if is_bad && number.is_multiple_of(100) => b"crash",
                _ => picture,
            };
            let asked = Instant::now();
            let answer =
                link.ask("POST", "/thumbnail", upload).expect("each request has an answer");
            match (answer.status, upload) {
                (503, _) => seen.shed += 1,
                (422, b"crash") => seen.crashes += 1,
                (504, b"hang!") => seen.hangs += 1,
                (200, upload) if upload == picture => {
                    assert!(answer.body.starts_with(b"\x89PNG"), "no picture");
                    seen.good.push(asked.elapsed());
                }
                (status, _) => {
                    let text = String::from_utf8_lossy(&answer.body);
                    panic!("{status} for {} bytes: {text}", upload.len());
                }
            }
        }
        seen
    };
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..connections).map(|at| scope.spawn(move || run(at))).collect();
        all.into_iter().map(|one| one.join().expect("a connection fails")).fold(
            Seen::default(),
            |mut sum, mut seen| {
                sum.good.append(&mut seen.good);
                sum.crashes += seen.crashes;
                sum.hangs += seen.hangs;
                sum.shed += seen.shed;
                sum
            },
        )
    })
}

/// Returns a picture to upload: a JPEG of 640 × 480 pixels.
pub(crate) fn picture() -> Vec<u8> {
    let pixel = |x: u32, y: u32| image::Rgb([(x / 3) as u8, (y / 2) as u8, (x * y / 700) as u8]);
    let mut jpeg = std::io::Cursor::new(Vec::new());
    let image = image::RgbImage::from_fn(640, 480, pixel);
    image.write_to(&mut jpeg, image::ImageFormat::Jpeg).expect("memory is enough");
    jpeg.into_inner()
}

//! A web service that makes thumbnails of pictures which strangers upload.
//!
//! The decoder runs in worker processes with a time limit and a memory limit: an upload that crashes it, hangs it or
//! takes too much memory costs one answer. The service sheds load when its queue is full, and drains at SIGTERM.
//!
//! ```console
//! $ cargo run --release --example service --features metrics,tracing -- 127.0.0.1:8080
//! $ curl --data-binary @picture.jpg -o thumbnail.png http://127.0.0.1:8080/thumbnail
//! $ curl http://127.0.0.1:8080/metrics
//! ```
//!
//! | answer | when |
//! |---|---|
//! | 200 | the thumbnail, as PNG |
//! | 413 | more than 16 MiB were uploaded |
//! | 422 | the upload is no picture, or it crashed the decoder or took too much memory |
//! | 503 | the queue is full, or the service ends: with `Retry-After` |
//! | 504 | it took too long |
//!
//! The decoder here has two bugs, for tests: it aborts at an upload that starts with `crash`, and waits for ever at
//! one that starts with `hang!`.

use std::io::Cursor;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use image::ImageFormat;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use procpool::{DeathCause, Pool, TaskError, TaskErrorKind};
use tokio::signal::unix::{SignalKind, signal};

// Before `main`, so that a worker has no runtime.
procpool::main!();

/// The longest side of a thumbnail, in pixels.
const SIDE: u32 = 128;

/// How long a picture may take. The slowest good one takes a tenth of it.
const TASK_LIMIT: Duration = Duration::from_secs(1);

/// How long the tasks have at SIGTERM. Less than a supervisor waits.
const DRAIN_LIMIT: Duration = Duration::from_secs(20);

/// Uploads that wait for a worker. More are refused.
const MAX_QUEUED: usize = 64;

/// The longest upload in bytes.
const MAX_UPLOAD: usize = 16 << 20;

/// A task: makes a thumbnail, as PNG.
fn thumbnail(upload: Vec<u8>) -> Result<Vec<u8>, String> {
    match upload.get(..5) {
        Some(b"crash") => std::process::abort(),
        Some(b"hang!") => loop {
            std::thread::park();
        },
        _ => {}
    }
    let picture = image::load_from_memory(&upload).map_err(|error| error.to_string())?;
    tracing::debug!(width = picture.width(), height = picture.height(), "decoded");
    let mut png = Cursor::new(Vec::new());
    let written = picture.thumbnail(SIDE, SIDE).write_to(&mut png, ImageFormat::Png);
    written.map_err(|error| error.to_string())?;
    Ok(png.into_inner())
}

#[derive(Clone)]
struct Service {
    pool: Pool,
    metrics: PrometheusHandle,
}

async fn post_thumbnail(State(service): State<Service>, upload: Bytes) -> Response {
    let Ok(task) = service.pool.try_apply_async(thumbnail, upload.into()) else {
        return unavailable("too many pictures are waiting");
    };
    // A client that has gone needs no thumbnail.
    match task.cancel_on_drop().await {
        Ok(Ok(png)) => ([(header::CONTENT_TYPE, "image/png")], png).into_response(),
        Ok(Err(reason)) => (StatusCode::UNPROCESSABLE_ENTITY, reason + "\n").into_response(),
        Err(error) => refusal(&error),
    }
}

/// Answers for a task that has no result.
fn refusal(error: &TaskError) -> Response {
    tracing::warn!(%error, "no thumbnail");
    let (status, reason) = match error.kind() {
        TaskErrorKind::TimedOut { .. } => (StatusCode::GATEWAY_TIMEOUT, "it takes too long\n"),
        TaskErrorKind::Died { cause: DeathCause::OutOfMemory, .. } => {
            (StatusCode::UNPROCESSABLE_ENTITY, "it takes too much memory\n")
        }
        TaskErrorKind::Died { .. } => {
            (StatusCode::UNPROCESSABLE_ENTITY, "it crashes the decoder\n")
        }
        TaskErrorKind::Closed | TaskErrorKind::Cancelled => {
            return unavailable("the service ends");
        }
        _ => (StatusCode::INTERNAL_SERVER_ERROR, "no worker can run\n"),
    };
    (status, reason).into_response()
}

fn unavailable(reason: &'static str) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "1")], reason).into_response()
}

async fn get_metrics(State(service): State<Service>) -> String {
    service.pool.publish_metrics();
    service.metrics.render()
}

/// Serves until SIGTERM.
pub async fn serve(address: String) -> Result<(), Box<dyn std::error::Error>> {
    let metrics = PrometheusBuilder::new()
        .set_buckets(&[0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0])?
        .install_recorder()?;
    let cpus = std::thread::available_parallelism()?.get();
    let pool = Pool::builder()
        .name("thumbnails")
        // One that hangs holds a worker for the time limit: the others must keep the CPUs busy.
        .workers(2 * cpus + 2)
        .spares(1)
        .task_timeout(TASK_LIMIT)
        .max_memory_per_worker(512 << 20)
        .max_tasks_per_worker(100_000)
        .max_queued(MAX_QUEUED)
        .build()?;
    let listener = tokio::net::TcpListener::bind(address).await?;
    println!("listening on http://{}", listener.local_addr()?);
    let service = Service { pool: pool.clone(), metrics };
    let routes = Router::new()
        .route("/thumbnail", post(post_thumbnail))
        .route("/metrics", get(get_metrics))
        .layer(DefaultBodyLimit::max(MAX_UPLOAD))
        .with_state(service);
    let mut stop = signal(SignalKind::terminate())?;
    let stopped = async move {
        stop.recv().await;
    };
    // Answers what was asked before the signal, and then ends the workers.
    axum::serve(listener, routes).with_graceful_shutdown(stopped).await?;
    let all_done = pool.drain_async(DRAIN_LIMIT).await;
    println!("ended, {}", if all_done { "all is answered" } else { "some pictures were cut off" });
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let level = tracing::Level::WARN;
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(level).init();
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8080".to_owned());
    tokio::runtime::Runtime::new()?.block_on(serve(address))
}

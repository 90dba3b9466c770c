//! Publishes a pool's numbers through the crate `metrics`: each time what has changed since the last time.

use std::sync::{Mutex, PoisonError};

use metrics::{counter, gauge, histogram};

use crate::pool::observe::metrics::{Histogram, Metrics};

/// What was published last.
#[derive(Debug, Default)]
pub(crate) struct Published(Mutex<Metrics>);

impl Published {
    /// Publishes `new` with the label `pool`.
    pub(crate) fn update(&self, pool: &str, new: Metrics) {
        // Held meanwhile: two threads that publish must not both publish the same change.
        let mut old = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let pool = pool.to_owned();
        let set = |name: &'static str, value: u64| {
            gauge!(name, "pool" => pool.clone()).set(value as f64);
        };
        let count = |name: &'static str, value: u64| {
            counter!(name, "pool" => pool.clone()).absolute(value);
        };
        set("procpool_tasks_queued", new.stats.queued);
        set("procpool_tasks_running", new.stats.running);
        set("procpool_workers", new.workers);
        set("procpool_workers_memory_bytes", new.memory);
        for (outcome, value) in [("done", new.stats.done), ("failed", new.stats.failed)] {
            let labels = [("pool", pool.clone()), ("outcome", outcome.to_owned())];
            counter!("procpool_tasks_total", &labels).absolute(value);
        }
        count("procpool_tasks_retried_total", new.stats.retried);
        count("procpool_worker_restarts_total", new.stats.restarts);
        count("procpool_argument_bytes_total", new.argument_bytes);
        count("procpool_result_bytes_total", new.result_bytes);
        let deaths = new.deaths;
        for (cause, value) in [
            ("signaled", deaths.signaled),
            ("exited", deaths.exited),
            ("out_of_memory", deaths.out_of_memory),
            ("timed_out", deaths.timed_out),
            ("cancelled", deaths.cancelled),
            ("sandboxed", deaths.sandboxed),
            ("other", deaths.other),
        ] {
            let labels = [("pool", pool.clone()), ("cause", cause.to_owned())];
            counter!("procpool_worker_deaths_total", &labels).absolute(value);
        }
        let spread = |name: &'static str, old: &Histogram, new: &Histogram| {
            let histogram = histogram!(name, "pool" => pool.clone());
            for (value, count) in new.since(old) {
                histogram.record_many(value.as_secs_f64(), count);
            }
        };
        spread("procpool_task_wait_seconds", &old.wait, &new.wait);
        spread("procpool_task_run_seconds", &old.run, &new.run);
        *old = new;
    }
}

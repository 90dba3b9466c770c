//! Formats figures for people.

use std::time::Duration;

use crate::format;

pub(super) fn time(seconds: f64) -> String {
    match Duration::try_from_secs_f64(seconds) {
        // Below 100 ns, a tenth matters.
        Ok(_) if seconds < 1e-7 => format!("{:.1} ns", seconds * 1e9),
        Ok(time) => format::duration(time),
        Err(_) => "–".to_owned(),
    }
}

pub(super) fn bytes(bytes: f64) -> String {
    format::bytes(bytes as u64)
}

pub(super) fn rate(a_second: f64) -> String {
    match a_second {
        1e6.. => format!("{:.2} M", a_second / 1e6),
        1e3.. => format!("{:.1} k", a_second / 1e3),
        _ => format::rate(a_second),
    }
}

pub(super) fn byte_rate(a_second: f64) -> String {
    format!("{:.2} GB/s", a_second / 1e9)
}

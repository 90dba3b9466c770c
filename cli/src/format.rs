//! Formats durations, sizes and text for people.

use std::borrow::Cow;
use std::time::Duration;

/// Formats three digits and a unit; from a minute on, minutes and hours.
pub(super) fn duration(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match time.as_nanos() {
        0..1_000 => format!("{} ns", time.as_nanos()),
        1_000..999_500 => format!("{} µs", three_digits(seconds * 1e6)),
        999_500..999_500_000 => format!("{} ms", three_digits(seconds * 1e3)),
        999_500_000..59_950_000_000 => format!("{} s", three_digits(seconds)),
        _ => {
            let seconds = time.as_secs_f64().round() as u64;
            let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
            if hours > 0 {
                format!("{hours} h {minutes:02} m")
            } else {
                format!("{minutes} m {seconds:02} s")
            }
        }
    }
}

/// Formats bytes in units of 1024.
pub(super) fn bytes(bytes: u64) -> String {
    let mut size = bytes as f64;
    let mut units = ["B", "KiB", "MiB", "GiB", "TiB"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    for larger in units {
        if size < 999.5 {
            break;
        }
        size /= 1024.0;
        unit = larger;
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{} {unit}", three_digits(size)) }
}

/// Formats a rate per second.
pub(super) fn rate(per_second: f64) -> String {
    if per_second < 99.95 { three_digits(per_second) } else { grouped(per_second.round() as u64) }
}

/// Formats a ratio.
pub(super) fn factor(times: f64) -> String {
    three_digits(times)
}

/// Groups digits by threes: 1,234,567.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() * 4 / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// Escapes control characters, so that text stays on one line of a terminal.
pub(super) fn one_line(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    let mut line = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    Cow::Owned(line)
}

/// Escapes control characters, and replaces the middle of a long text.
pub(super) fn shortened(text: &str) -> Cow<'_, str> {
    /// Characters kept at the start and at the end.
    const CHARS_KEPT: usize = 150;
    let ends = (text.char_indices().nth(CHARS_KEPT), text.char_indices().rev().nth(CHARS_KEPT - 1));
    match ends {
        (Some((begin, _)), Some((end, _))) if end > begin + 40 => {
            let (begin, end, left) = (&text[..begin], &text[end..], end - begin);
            let (begin, end) = (one_line(begin), one_line(end));
            Cow::Owned(format!("{begin} … {} bytes … {end}", grouped(left as u64)))
        }
        _ => one_line(text),
    }
}

fn three_digits(number: f64) -> String {
    let decimals = match number {
        ..9.995 => 2,
        ..99.95 => 1,
        _ => 0,
    };
    format!("{number:.decimals$}")
}

/// Formats how far a job is: a percentage, or a number if the whole is not known.
pub(super) fn part(progress: procpool::Progress) -> String {
    match progress.total {
        Some(total) if total > 0 => {
            // In 128 bits: a job may count anything.
            let done = u128::from(progress.done.min(total));
            format!("{} %", done * 100 / u128::from(total))
        }
        _ => progress.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_three_digits_and_a_unit() {
        let of = |nanos: u64| duration(Duration::from_nanos(nanos));
        assert_eq!(of(0), "0 ns");
        assert_eq!(of(850), "850 ns");
        assert_eq!(of(1_234), "1.23 µs");
        assert_eq!(of(999_499), "999 µs");
        assert_eq!(of(999_500), "1.00 ms");
        assert_eq!(of(45_678_000), "45.7 ms");
        assert_eq!(of(999_999_999), "1.00 s");
        assert_eq!(of(59_940_000_000), "59.9 s");
        assert_eq!(of(59_990_000_000), "1 m 00 s");
        assert_eq!(of(3_723_000_000_000), "1 h 02 m");
    }

    #[test]
    fn sizes_have_three_digits_and_a_unit() {
        let sizes = [0, 999, 1000, 1024, 3_500_000, 64 << 30].map(bytes);
        assert_eq!(sizes, ["0 B", "999 B", "0.98 KiB", "1.00 KiB", "3.34 MiB", "64.0 GiB"]);
    }

    #[test]
    fn rates_can_be_taken_in() {
        assert_eq!([3.0, 99.0, 1_234_567.4].map(rate), ["3.00", "99.0", "1,234,567"]);
        assert_eq!(rate(0.0), "0.00");
    }

    #[test]
    fn a_long_text_is_shortened_in_its_middle() {
        assert_eq!(shortened("a\nb"), "a\\nb");
        let short = "é".repeat(300);
        assert_eq!(shortened(&short), short);
        let long = format!("begin{}end", "é".repeat(100_000));
        let shortened = shortened(&long);
        assert!(shortened.starts_with("begin") && shortened.ends_with("end"), "{shortened}");
        assert!(shortened.contains("199,416 bytes") && shortened.len() < 700, "{shortened}");
    }

    #[test]
    fn text_stays_on_its_line() {
        assert_eq!(one_line("a b"), "a b");
        assert_eq!(one_line("a\nb\x1b[2J"), "a\\nb\\u{1b}[2J");
    }
}

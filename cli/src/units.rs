//! Parses durations and sizes.

use std::time::Duration;

/// The time limit of an input.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum TimeLimit {
    Fixed(Duration),
    /// This many times the median of the successful jobs.
    OfMedian(f64),
}

/// A longer time means no limit.
const LONGEST: f64 = 1e9;

/// The least memory limit that makes sense: a worker needs part of it for itself.
const MIN_MEMORY: u64 = 16 << 20;

/// Parses `10`, `1.5`, `500ms`, `2s`, `1m`, `2h`. The default unit is the second.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    const FORM: &str = "use seconds, or a number with a unit: 10, 1.5, 500ms, 2s, 1m, 2h";
    let (number, unit) = split(text).ok_or(FORM)?;
    let seconds = match unit {
        "ms" => number / 1e3,
        "" | "s" => number,
        "m" | "min" => number * 60.0,
        "h" => number * 3600.0,
        _ => return Err(FORM.to_owned()),
    };
    if seconds < 1e-3 {
        return Err("the minimum is 1ms; leave it out for no limit".to_owned());
    }
    Ok(Duration::from_secs_f64(seconds.min(LONGEST)))
}

/// Parses a duration, or a percentage of the median such as `300%`.
pub(super) fn time_limit(text: &str) -> Result<TimeLimit, String> {
    match text.trim().strip_suffix('%') {
        None => duration(text).map(TimeLimit::Fixed),
        Some(percent) => match percent.trim().parse() {
            Ok(percent) if (1.0..=LONGEST).contains(&percent) => {
                Ok(TimeLimit::OfMedian(percent / 100.0))
            }
            _ => Err("use a percentage of the median, such as 300%".to_owned()),
        },
    }
}

/// Parses `200M`, `1.5G`, `64MiB`, in units of 1024. The default unit is the byte.
pub(super) fn memory(text: &str) -> Result<u64, String> {
    const FORM: &str = "use a number with a unit: 200M, 1G, 1.5GiB";
    let (number, unit) = split(text).ok_or(FORM)?;
    let unit = unit.to_ascii_lowercase();
    let unit = unit.strip_suffix("ib").or(unit.strip_suffix('b')).unwrap_or(&unit);
    let shift = ["", "k", "m", "g", "t"].iter().position(|known| *known == unit).ok_or(FORM)?;
    let bytes = (number * f64::from(1u32 << 10).powi(shift as i32)) as u64;
    if bytes < MIN_MEMORY {
        return Err("use at least 16M: a worker itself needs about 10M".to_owned());
    }
    Ok(bytes)
}

/// Parses a character of one byte, or one of the escapes `\n`, `\t`, `\0`, `\\` and `\x2c`.
pub(super) fn delimiter(text: &str) -> Result<u8, String> {
    match text.as_bytes() {
        [byte] => Ok(*byte),
        [b'\\', escaped] => match escaped {
            b'n' => Ok(b'\n'),
            b't' => Ok(b'\t'),
            b'r' => Ok(b'\r'),
            b'0' => Ok(0),
            b'\\' => Ok(b'\\'),
            _ => Err("use one of \\n \\t \\r \\0 \\\\, or \\x and two digits".to_owned()),
        },
        [b'\\', b'x', digits @ ..] if digits.len() == 2 => {
            let digits = std::str::from_utf8(digits).unwrap_or_default();
            u8::from_str_radix(digits, 16).map_err(|error| error.to_string())
        }
        _ => Err("use a single character of ASCII: ',' or '\\t' or '\\0'".to_owned()),
    }
}

/// Splits a non-negative number from its unit.
fn split(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let end = text.find(|character: char| !character.is_ascii_digit() && character != '.');
    let (number, unit) = text.split_at(end.unwrap_or(text.len()));
    Some((number.parse().ok()?, unit.trim_start()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn durations_are_seconds_or_have_a_unit() {
        let millis = |text| duration(text).unwrap().as_millis();
        assert_eq!(
            ["10", "1.5", "500ms", "2s", "1m", "1 h"].map(millis),
            [10_000, 1_500, 500, 2_000, 60_000, 3_600_000]
        );
        assert!(duration("99999999999999999999h").is_ok(), "as good as none");
        for text in ["", "s", "-1", "1d", "1.2.3", "ten", "nan", "inf"] {
            assert!(duration(text).unwrap_err().contains("500ms"), "{text}");
        }
        assert!(duration("0").unwrap_err().contains("leave it out"));
    }

    #[test]
    fn sizes_are_bytes_or_have_a_unit_of_1024() {
        let mebibytes = |text| memory(text).unwrap() >> 20;
        let sizes = ["200M", "1g", "1.5GiB", "64 MB", "33554432"].map(mebibytes);
        assert_eq!(sizes, [200, 1024, 1536, 64, 32]);
        for text in ["", "M", "-5M", "1X", "much"] {
            assert!(memory(text).unwrap_err().contains("200M"), "{text}");
        }
        assert!(memory("200").unwrap_err().contains("at least"));
    }
}

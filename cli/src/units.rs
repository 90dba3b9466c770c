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

/// Parses `10`, `1.5`, `500ms`, `2s`, `1m30s`, `2h`, `1d`. The default unit is the second.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    const FORM: &str = "use seconds, or numbers with units: 10, 1.5, 500ms, 2s, 1m30s, 2h, 1d";
    let (mut seconds, mut rest, mut last) = (0.0, text.trim(), f64::INFINITY);
    loop {
        let (number, unit_and_more) = split(rest).ok_or(FORM)?;
        let end = unit_and_more.find(|it: char| !it.is_ascii_alphabetic());
        let (unit, more) = unit_and_more.split_at(end.unwrap_or(unit_and_more.len()));
        let unit = match unit {
            "ms" => 1e-3,
            "" | "s" => 1.0,
            "m" | "min" => 60.0,
            "h" => 3600.0,
            "d" => 86400.0,
            _ => return Err(FORM.to_owned()),
        };
        // Each unit once, the largest first.
        if unit >= last {
            return Err(FORM.to_owned());
        }
        seconds += number * unit;
        (rest, last) = (more.trim_start(), unit);
        if rest.is_empty() {
            break;
        }
    }
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

/// Parses a size from 1 byte: `64K`, `10M`, in units of 1024.
pub(super) fn size(text: &str) -> Result<usize, String> {
    const FORM: &str = "use a number with a unit: 64K, 1M, 10M";
    let (number, unit) = split(text).ok_or(FORM)?;
    let unit = unit.to_ascii_lowercase();
    let unit = unit.strip_suffix("ib").or(unit.strip_suffix('b')).unwrap_or(&unit);
    let shift = ["", "k", "m", "g"].iter().position(|known| *known == unit).ok_or(FORM)?;
    let bytes = number * f64::from(1u32 << 10).powi(shift as i32);
    if !(1.0..=f64::from(u32::MAX)).contains(&bytes) {
        return Err("use at least 1 byte, and less than 4G".to_owned());
    }
    Ok(bytes as usize)
}

/// A text in which escapes stand for bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Text(pub(super) Vec<u8>);

/// Parses a text with the escapes `\n`, `\t`, `\r`, `\0`, `\\` and `\x2c`.
pub(super) fn text(text: &str) -> Result<Text, String> {
    let (mut bytes, mut rest) = (Vec::new(), text);
    while let Some(first) = rest.chars().next() {
        let length = match (first, rest.as_bytes().get(1)) {
            ('\\', Some(b'x')) => 4,
            ('\\', _) => 2,
            _ => {
                bytes.extend_from_slice(&rest.as_bytes()[..first.len_utf8()]);
                rest = &rest[first.len_utf8()..];
                continue;
            }
        };
        let escape = rest.get(..length).ok_or("use \\\\ for a backslash")?;
        bytes.push(delimiter(escape)?);
        rest = &rest[length..];
    }
    Ok(Text(bytes))
}

/// Parses a number of processes such as `4`, or of the CPUs such as `80%`.
pub(super) fn load(text: &str) -> Result<f64, String> {
    let (number, is_percent) =
        text.strip_suffix('%').map_or((text, false), |number| (number, true));
    let number =
        number.trim().parse::<f64>().ok().filter(|number| *number > 0.0 && number.is_finite());
    let number = number.ok_or("use a number of processes such as 4, or of the CPUs such as 80%")?;
    if !is_percent {
        return Ok(number);
    }
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Ok(number / 100.0 * cpus as f64)
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
        assert_eq!(["1m30s", "1d", "1h 2m3"].map(millis), [90_000, 86_400_000, 3_723_000]);
        assert!(load("50%").unwrap() >= 0.5 && load("1.5") == Ok(1.5) && load("0").is_err());
        assert!(duration("99999999999999999999h").is_ok(), "as good as none");
        for text in ["", "s", "-1", "30s1m", "1s1s", "1.2.3", "ten", "nan", "inf"] {
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

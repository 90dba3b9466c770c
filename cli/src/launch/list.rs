//! Lists of hosts: `n1,n2:8`, a hostfile, and the node lists of Slurm.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use anyhow::Result;

use crate::exit::Usage;

/// A host as it was named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Host {
    pub(crate) name: String,
    /// The number of its workers, if it was given.
    pub(crate) workers: Option<usize>,
}

impl Host {
    fn new(name: &str, workers: Option<usize>) -> Self {
        Self { name: name.to_owned(), workers }
    }
}

/// The most hosts of a list: a typing error such as `n[1-1000000000]` must not fill memory.
const MAX_HOSTS: usize = 100_000;

/// Parses `--hosts`.
pub(crate) fn of_argument(list: &str) -> Result<Vec<Host>> {
    let hosts = list.split(',').map(str::trim).filter(|name| !name.is_empty());
    let hosts = hosts.map(|host| named(host).map_err(|why| wrong("--hosts", &why)));
    checked(hosts.collect::<Result<_>>()?, "--hosts")
}

/// Reads a hostfile, in the form of Open MPI: a host per line, and `slots=N` for its workers.
pub(crate) fn of_file(path: &Path) -> Result<Vec<Host>> {
    let text = fs::read_to_string(path).map_err(|error| {
        Usage::error(format!("failed to read the hosts from {path:?}: {error}; check --hostfile"))
    })?;
    of_lines(&text).and_then(|hosts| checked(hosts, "--hostfile"))
}

fn of_lines(text: &str) -> Result<Vec<Host>> {
    let mut hosts = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let Some(first) = words.next() else { continue };
        let refused = |why: String| wrong(&format!("line {number} of --hostfile"), &why);
        let mut host = named(first).map_err(refused)?;
        for word in words {
            match word.split_once('=') {
                Some(("slots", count)) => host.workers = Some(count_of(count).map_err(refused)?),
                // Open MPI's limits of more ranks than slots. There is one rank per host here.
                Some(("max_slots" | "max-slots", _)) => {}
                _ => return Err(refused(format!("{word:?} isn't slots=N"))),
            }
        }
        hosts.push(host);
    }
    Ok(hosts)
}

/// Parses a host with the number of its workers: `n2:8`.
fn named(text: &str) -> Result<Host, String> {
    let (name, workers) = match text.rsplit_once(':') {
        // More colons are an address of IPv6.
        Some((name, count)) if !name.contains(':') => (name, Some(count_of(count)?)),
        _ => (text, None),
    };
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte);
    // A name that starts with - would be an option of the remote shell.
    if name.is_empty() || name.starts_with('-') || !name.bytes().all(is_name) {
        return Err(format!("{name:?} isn't the name of a host"));
    }
    Ok(Host::new(name, workers))
}

fn count_of(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if count > 0 => Ok(count),
        _ => Err(format!("{text:?} isn't a number of workers")),
    }
}

/// Expands the node list of a Slurm allocation: `n[1-3,7],gpu-[08-10]`.
pub(crate) fn of_slurm(list: &str) -> Result<Vec<Host>> {
    let names = expanded(list).ok_or_else(|| {
        Usage::error(format!(
            "failed to understand SLURM_JOB_NODELIST={list:?}: name the hosts with --hosts"
        ))
    })?;
    checked(names.iter().map(|name| Host::new(name, None)).collect(), "SLURM_JOB_NODELIST")
}

fn expanded(list: &str) -> Option<Vec<String>> {
    let mut names = Vec::new();
    let mut rest = list;
    while !rest.is_empty() {
        let mut depth = 0;
        let end = rest.find(|char| {
            depth += i32::from(char == '[') - i32::from(char == ']');
            char == ',' && depth == 0
        });
        let (one, more) = match end {
            Some(end) => (&rest[..end], &rest[end + 1..]),
            None => (rest, ""),
        };
        expand(one, "", &mut names)?;
        rest = more;
    }
    Some(names)
}

/// Expands the brackets of one name, of which `before` is done.
fn expand(name: &str, before: &str, names: &mut Vec<String>) -> Option<()> {
    let Some((start, rest)) = name.split_once('[') else {
        names.push(format!("{before}{name}"));
        return (names.len() <= MAX_HOSTS && !name.contains(']')).then_some(());
    };
    let (ranges, rest) = rest.split_once(']')?;
    for range in ranges.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let width = first.len();
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last - first >= MAX_HOSTS as u64 {
            return None;
        }
        for number in first..=last {
            expand(rest, &format!("{before}{start}{number:0width$}"), names)?;
        }
    }
    Some(())
}

fn checked(hosts: Vec<Host>, from: &str) -> Result<Vec<Host>> {
    let mut names = HashSet::new();
    if let Some(twice) = hosts.iter().find(|host| !names.insert(&host.name)) {
        return Err(wrong(from, &format!("{:?} is there twice", twice.name)));
    }
    if hosts.is_empty() {
        return Err(wrong(from, "there is no host in it"));
    }
    if hosts.len() > MAX_HOSTS {
        return Err(wrong(from, "there are too many hosts in it"));
    }
    Ok(hosts)
}

fn wrong(from: &str, why: &str) -> anyhow::Error {
    Usage::error(format!("failed to understand {from}: {why}; name hosts as in n1,n2:8"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn pairs(hosts: &[Host]) -> Vec<(&str, Option<usize>)> {
        hosts.iter().map(|host| (host.name.as_str(), host.workers)).collect()
    }

    #[test]
    fn a_list_names_hosts_and_the_number_of_their_workers() {
        let hosts = of_argument("n1, n2:8,,10.0.0.3:2,a.b-c,fe80::1").unwrap();
        let expected = [("n1", None), ("n2", Some(8)), ("10.0.0.3", Some(2)), ("a.b-c", None)];
        assert_eq!(pairs(&hosts), [&expected[..], &[("fe80::1", None)]].concat());
        for wrong in ["", ",", "n1,n1:3", "n1:0", "n1:x", "-oProxyCommand=x", "a b", "n1;reboot"] {
            let error = of_argument(wrong).unwrap_err();
            assert!(error.is::<Usage>() && error.to_string().contains("--hosts"), "{error}");
        }
    }

    #[test]
    fn a_hostfile_is_that_of_open_mpi() {
        let hosts = of_lines("# nodes\nn1 slots=4 max_slots=8\n\n n2:3 # fast\nn3\r\n").unwrap();
        assert_eq!(pairs(&hosts), [("n1", Some(4)), ("n2", Some(3)), ("n3", None)]);
        for wrong in ["n1\nn2 slots=none", "n1\nn2 gpu", "n1\n-x"] {
            let error = of_lines(wrong).unwrap_err().to_string();
            assert!(error.contains("line 2"), "{error}");
        }
        let error = of_file(Path::new("/nowhere/hosts")).unwrap_err().to_string();
        assert!(error.contains("check --hostfile"), "{error}");
    }

    #[test]
    fn a_node_list_of_slurm_is_expanded() {
        let names = |list| expanded(list).unwrap();
        assert_eq!(names("n1"), ["n1"]);
        assert_eq!(names("n[1-3,7],login"), ["n1", "n2", "n3", "n7", "login"]);
        assert_eq!(names("gpu-[08-10]x"), ["gpu-08x", "gpu-09x", "gpu-10x"]);
        assert_eq!(names("r[1-2]n[01-02]"), ["r1n01", "r1n02", "r2n01", "r2n02"]);
        for wrong in ["n[", "n[1-", "n[3-1]", "n[a-b]", "n]", "n[0-18446744073709551615]"] {
            assert_eq!(expanded(wrong), None, "{wrong}");
        }
    }
}

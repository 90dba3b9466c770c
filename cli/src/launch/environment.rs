//! This machine's name, and the processes that a launcher or Slurm has started.

use std::env;
use std::fs;
use std::net::{IpAddr, ToSocketAddrs, UdpSocket};

use anyhow::Result;

use super::list::{self, Host};

/// Whether this program can span hosts.
pub(super) const HAS_MPI: bool = cfg!(feature = "mpi");

/// The remedy where it can't.
pub(super) const GET_MPI: &str = "install procpool with 'cargo install --path cli --features mpi', which needs \
                       Open MPI (Debian: apt-get install libopenmpi-dev openmpi-bin libclang-dev)";

/// Whether MPI has started this process: the ranks are known by these variables.
pub(crate) fn is_launched() -> bool {
    ["OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"].iter().any(|name| env::var_os(name).is_some())
}

/// The number of processes that MPI has started with this one, according to the environment.
pub(crate) fn launched_with() -> Option<u32> {
    let sizes = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"];
    let size = sizes.iter().find_map(|name| env::var(name).ok())?;
    size.parse().ok()
}

/// Whether this name is that of the machine that this runs on.
pub(crate) fn is_here(name: &str) -> bool {
    let own = own_name();
    let short = |name: &str| name.split('.').next().unwrap_or_default().to_owned();
    if name == own || name == "localhost" {
        return true;
    }
    let is_address = name.parse::<IpAddr>().is_ok();
    if !is_address && short(name) == short(&own) {
        return true;
    }
    // An address that can be bound to is one of this machine's.
    let addresses = ToSocketAddrs::to_socket_addrs(&(name, 0));
    addresses.is_ok_and(|mut all| all.any(|address| UdpSocket::bind(address).is_ok()))
}

/// The name of the machine that this runs on.
pub(crate) fn own_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname");
    name.unwrap_or_default().trim().to_owned()
}

/// Returns the nodes of the Slurm allocation that this process is in, if there are several and this
/// is no step of it.
pub(super) fn allocation() -> Result<Option<Vec<Host>>> {
    let is_step = ["SLURM_STEP_ID", "SLURM_STEPID"].iter().any(|name| env::var_os(name).is_some());
    let Some(nodes) = env::var("SLURM_JOB_NODELIST").ok().filter(|_| !is_step) else {
        return Ok(None);
    };
    let hosts = list::of_slurm(&nodes)?;
    Ok((hosts.len() > 1).then_some(hosts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_knows_its_own_names() {
        assert!(is_here(&own_name()) && is_here("localhost") && is_here("127.0.0.1"));
        assert!(!is_here("240.0.0.1"), "no host has a reserved address");
    }
}

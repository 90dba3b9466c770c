//! The arguments of `run` that confine the workers and their jobs, as typed.

use std::path::{Path, PathBuf};

use clap::{Args, ValueHint};

use procpool::{Ports, Sandbox};

/// What programs need of the system: themselves, their libraries and data. Those that exist are readable.
const SYSTEM: [&str; 14] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/nix/store",
    "/etc/alternatives",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/dev/urandom",
    "/dev/zero",
    // Workers find the processes of their jobs there. The kernel hides memory and environment of other processes.
    "/proc",
    "/sys/devices/system/cpu",
];

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Sandbox")]
pub(super) struct SandboxArgs {
    /// Confine workers and jobs: they reach no file but those of --read and --write, and of the
    /// installed programs if they run a command; no network; no process but their own. Needs Linux
    /// 6.2, for a command 6.12
    #[arg(long, conflicts_with_all = ["pty", "tty"])]
    sandbox: bool,

    /// Let them read a file, or all below a directory; may be repeated
    #[arg(long, value_name = "PATH", requires = "sandbox", value_hint = ValueHint::AnyPath)]
    read: Vec<PathBuf>,

    /// Let them read and change a file, or all below a directory; may be repeated
    #[arg(long, value_name = "PATH", requires = "sandbox", value_hint = ValueHint::AnyPath)]
    write: Vec<PathBuf>,

    /// Let them use the network; with PORTS, such as 443 or 80,443, make TCP connections to those only
    #[arg(long, value_name = "PORTS", requires = "sandbox", value_hint = ValueHint::Other)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "all", value_parser = net)]
    net: Option<Ports>,
}

/// Parses `--net`.
fn net(text: &str) -> Result<Ports, String> {
    if text == "all" {
        return Ok(Ports::all());
    }
    let ports = text.split(',').map(|port| {
        port.trim().parse::<u16>().map_err(|_| format!("'{port}' is no port: use 1 to 65535"))
    });
    Ok(Ports::connect(ports.collect::<Result<Vec<_>, _>>()?))
}

impl SandboxArgs {
    /// Whether there is to be a sandbox.
    pub(super) fn is_wanted(&self) -> bool {
        self.sandbox
    }

    /// Returns the sandbox of a built-in task, if there is to be one.
    pub(super) fn of_task(self) -> Option<Sandbox> {
        let Self { sandbox, read, write, net } = self;
        let mut confined = sandbox.then(Sandbox::strict)?;
        confined = read.into_iter().fold(confined, Sandbox::read);
        confined = write.into_iter().fold(confined, Sandbox::write);
        Some(net.into_iter().fold(confined, Sandbox::network))
    }

    /// Returns the sandbox of a command, if there is to be one.
    pub(super) fn of_command(self, program: Option<&Path>) -> Option<Sandbox> {
        let mut confined = self.of_task()?.spawn(true).after_initializer().write("/dev/null");
        let installed = SYSTEM.iter().map(Path::new).filter(|path| path.exists());
        for path in installed.chain(program.filter(|path| path.exists())) {
            confined = confined.read(path);
        }
        Some(confined)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn ports_are_numbers_or_all() {
        assert_eq!(net("all").unwrap(), Ports::all());
        assert_eq!(net("80, 443").unwrap(), Ports::connect([80, 443]));
        assert!(net("http").unwrap_err().contains("'http' is no port"));
        assert!(net("65536").is_err());
    }
}

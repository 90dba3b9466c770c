//! The `procpool` command: the library's entry point first, then the command line.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    // A worker is a copy of this program: it goes in here and never comes out.
    procpool::init();
    procpool::cli::main()
}

#!/usr/bin/env bash
# Measures the cost of pools that span hosts, beside mpi4py, on a rig of hosts on this machine: benches/hosts/run.sh PYTHON.
#
# PYTHON has mpi4py. It has the requirements of tests/hosts/rig. Prints one line for each measurement.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${1:-python3}
cargo build --release --locked --quiet -p procpool --features mpi --example hosts-bench
program=$PWD/target/release/examples/hosts-bench
work=$(mktemp -d)
trap 'tests/hosts/rig down "$work/rig" || true; rm -rf "$work"' EXIT
tests/hosts/rig up "$work/rig" 3

# run HOSTS COMMAND...: one rank on each host.
run() {
    local hosts=$1
    shift
    timeout -s KILL 120 tests/hosts/rig on "$work/rig" n1 mpirun --allow-run-as-root --host "$hosts" --map-by ppr:1:node \
        --bind-to none --mca plm_rsh_agent "$work/rig/rsh" --mca pml ob1 --mca btl self,vader,tcp "$@" 2> "$work/err" \
        || { cat "$work/err" >&2; return 1; }
}
for round in 1 2 3; do
    echo "round $round"
    echo "  empty tasks, 3 hosts, 1 worker each: $(run n1,n2,n3 "$program" rate 1)"
    echo "  the same, mpi4py.futures, 1 manager and 2 workers: $(run n1,n2,n3 "$python" -m mpi4py.futures benches/hosts/futures.py)"
    echo "  ping-pong of 8 bytes: $(run n1,n2 "$python" benches/hosts/futures.py pingpong)"
    echo "  single calls: $(run n1,n2 "$program" single 1)"
    echo "  idle manager, CPU share: $(run n1,n2,n3 "$program" idle 1)"
    echo "  pi, 2 hosts: $(run n1,n2 "$program" pi 1)"
    echo "  pi, 1 host: $(run n1 "$program" pi 1)"
done

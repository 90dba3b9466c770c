#!/usr/bin/env bash
# Runs procpool on three hosts of a rig, with failures: tests/hosts/run.sh [PROGRAM].
#
# PROGRAM is built with the feature `mpi`; without it, this builds one. Needs root, network namespaces
# and Open MPI: where one is missing, it says so and exits with 0. TIMES=10 repeats each run with a
# failure ten times.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
times=${TIMES:-1}

skip() { echo "left out: $*"; exit 0; }
fail() { printf 'FAILED: %s\n' "$*" >&2; exit 1; }
[ "$(id -u)" = 0 ] || skip "the rig of hosts needs root"
unshare --net --uts --ipc --mount --pid --fork true 2> /dev/null || skip "there are no namespaces"
command -v mpirun > /dev/null || skip "there is no Open MPI (Debian: openmpi-bin)"
for tool in ip nsenter ssh python3 /usr/sbin/sshd; do
    command -v $tool > /dev/null || skip "there is no $tool (Debian: iproute2 util-linux openssh-server)"
done

program=${1:-}
if [ -z "$program" ]; then
    (cd "$here/../.." && cargo build --locked --quiet -p procpool-cli --features mpi)
    program=$here/../../target/debug/procpool
fi
work=$(mktemp -d)
rig=$work/rig
trap '"$here/rig" down "$rig" || true; rm -rf "$work"' EXIT
"$here/rig" up "$rig" 3
# The same path on all hosts, of which a test may replace one.
cp "$program" "$work/procpool"
program=$work/procpool
cd "$work"

on() { "$here/rig" on "$rig" "$@"; }
run() { timeout -k 5 "${LIMIT:-120}" "$here/rig" on "$rig" n1 "$program" run --hosts n1,n2,n3 --rsh "$rig/rsh" "$@"; }

# The PIDs of the process of the run on a host, which isn't a worker: the first is the oldest.
ranks() { on "$1" sh -c 'for p in /proc/[0-9]*; do
    grep -qz "^OMPI_COMM_WORLD_RANK=" $p/environ 2> /dev/null && [ "$(readlink $p/exe)" = '"$program"' ] &&
    ! grep -qz procpool-worker $p/cmdline && echo ${p#/proc/}; done | sort -n'; }

# Waits until a file has so many lines.
until_lines() {
    for _ in $(seq 6000); do
        [ "$(cat "$1" 2> /dev/null | wc -l)" -lt "$2" ] || return 0
        sleep 0.01
    done
    fail "$1 has $(cat "$1" | wc -l) lines and not $2: $(cat err; tail -n 2 journal; for host in n1 n2 n3; do
        on $host ps ax -o pid,args 2>&1 | grep -v " ps ax"; done | cut -c1-150)"
}

# All of `0..N` are in the output, each once.
each_once() {
    diff <(sort -n "$1") <(seq 0 $(($2 - 1))) > "$work/diff" \
        || { head "$work/diff" "$work/err" >&2; fail "$3: not each result once"; }
}

# The jobs: each takes 20 ms, says its input, and that it has run, and where.
cat > job << 'END'
#!/bin/sh
sleep 0.02
echo "$(hostname) $1" >> ran
echo $1
END
chmod +x job

begin() { rm -f ran out err journal results; echo "--- $*"; begun=$(date +%s%N); }
took() { echo "    $(((($(date +%s%N) - begun)) / 1000000)) ms"; }

begin "all results are there, each once, from all hosts"
run -p 2 --count 300 -- ./job {} > out 2> err || fail "exit code $?: $(cat err)"
each_once out 300 plain
[ "$(cut -d' ' -f1 ran | sort -u | tr '\n' ' ')" = "n1 n2 n3 " ] || fail "not on all hosts: $(cut -d' ' -f1 ran | sort | uniq -c) $(cat err)"
took

begin "a sandbox holds on every host"
echo secret > secret
run -p 1 --sandbox --read "$work/secret" --count 60 -- sh -c 'sleep 0.05; hostname; cat secret' > out 2> err || fail "exit code $?: $(cat err)"
[ "$(sort -u out | tr "\n" " ")" = "n1 n2 n3 secret " ] || fail "$(sort out | uniq -c; cat err)"
! run -p 1 --sandbox --count 30 -- cat "$work/secret" > out 2> err || fail "it was read"
[ ! -s out ] && grep -q "Permission denied" err || fail "$(cat out err)"
took

begin "hosts are checked"
on n1 "$program" hosts --hosts n1,n2:4,n3 --rsh "$rig/rsh" > out 2> err || fail "$(cat out err)"
! on n1 "$program" hosts --hosts n1,nowhere --rsh "$rig/rsh" > out 2>&1 || fail "nowhere is a host"
grep -q "nowhere.*can't be reached" out || fail "$(cat out)"
took

# Runs a command in the middle of a run: lose WHAT COMMAND...
lose() {
    local what=$1 pid code=0
    shift
    for time in $(seq "$times"); do
        begin "$what ($time of $times)"
        "$here/rig" up "$rig" 3
        run -p 2 --count 400 --retries 3 --journal journal -- ./job {} > out 2> err &
        pid=$!
        until_lines ran 100
        "$@"
        wait $pid || code=$?
        [ $code = 0 ] || fail "$what: exit code $code: $(cat err)"
        each_once out 400 "$what"
        tail -n 1 journal | grep -q '"end":{"exit":0,"succeeded":400,"failed":0' || fail "no end: $(tail -n 3 journal)"
        took
        grep -h "^lost" err | sed 's/^/    /' || true
    done
}

agent_killed() { on n2 kill -KILL "$(ranks n2 | head -n 1)"; }
run_killed() { on n1 kill -KILL "$(ranks n1 | head -n 1)"; }
launcher_killed() { on n1 sh -c 'kill -KILL $(pgrep -o -x mpirun)'; }
power_cut() { "$here/rig" kill "$rig" n3; }
crash() { "$here/rig" crash "$rig" n3; }
partition() { "$here/rig" cut "$rig" n3; }

lose "a rank is killed" agent_killed
lose "a host's power is cut" power_cut
lose "a host crashes" crash
lose "a host is cut off" partition
lose "the run itself is killed, and launched again" run_killed
lose "the launcher is killed, and with it all hosts" launcher_killed

# The output file of a run whose machine loses its power is, once resumed, that of an unbroken run.
columns() { python3 -c 'import csv, sys
for row in csv.reader(open(sys.argv[1])): print(row[0], row[6], row[7], row[-1])' "$1"; }
for time in $(seq "$times"); do
    begin "the machine of the run loses its power, and the run is resumed ($time of $times)"
    "$here/rig" up "$rig" 3
    options=(-p 2 --count 300 --keep-order --retries 1 --format csv --results results)
    run "${options[@]}" -- ./job {} > /dev/null 2> err || fail "unbroken: exit code $?: $(cat err)"
    columns results > unbroken
    rm results ran
    run "${options[@]}" --journal journal -- ./job {} > out 2> err &
    pid=$!
    until_lines results 80
    "$here/rig" kill "$rig" n1
    wait $pid && fail "it ended well without power" || true
    "$here/rig" up "$rig" 3
    run "${options[@]}" --journal journal --resume -- ./job {} > out 2> err || fail "resumed: exit code $?: $(cat err)"
    columns results > resumed
    diff unbroken resumed > diff || { head diff >&2; fail "another output file"; }
    [ "$(wc -l < ran)" -lt 420 ] || fail "most was done again: $(wc -l < ran)"
    took
done

begin "a host with another build is refused, with exit code 4"
# The same program with another build id.
python3 - "$program" other << 'END'
import sys
data = bytearray(open(sys.argv[1], "rb").read())
at = data.index(b"\x04\0\0\0\x14\0\0\0\x03\0\0\0GNU\0") + 16
data[at] ^= 1
open(sys.argv[2], "wb").write(data)
END
chmod +x other
on n3 mount --bind "$work/other" "$program"
code=0
run --count 3 -- ./job {} > out 2> err || code=$?
[ $code = 4 ] || fail "exit code $code: $(cat err)"
grep -q n3 err || fail "the host isn't named: $(cat err)"
sed 's/^/    /' err
! on n1 "$program" hosts --hosts n1,n2,n3 --rsh "$rig/rsh" > out 2>&1 || fail "hosts: $(cat out)"
grep -q "^n3 .*another build" out || fail "hosts: $(cat out)"
on n3 umount "$program"
took

begin "an interrupted run ends in order everywhere"
run -p 2 --count 4000 --journal journal -- ./job {} > out 2> err &
pid=$!
until_lines ran 50
on n1 sh -c 'kill -INT $(pgrep -o -x procpool)'
code=0
wait $pid || code=$?
[ $code = 130 ] || fail "exit code $code: $(cat err)"
for host in n1 n2 n3; do
    for _ in $(seq 500); do
        left=$(on $host sh -c 'pgrep -x procpool; pgrep -x orted; pgrep -x mpirun' || true)
        [ -n "$left" ] || break
        sleep 0.02
    done
    [ -z "$left" ] || fail "left on $host: $(on $host ps ax)"
done
took

echo "all passed"

#!/usr/bin/env bash
# Runs the library's tests on pools that span three agents of this host: tests/hosts/suite.sh.
#
# `PROCPOOL_HOSTS=mpi` makes every pool of the test program span the ranks that mpirun starts. This script
# skips tests of behaviour that differs in such a pool. Each skip has its reason.
set -euo pipefail
cd "$(dirname "$0")/../.."

command -v mpirun > /dev/null || { echo "left out: there is no Open MPI (Debian: openmpi-bin)"; exit 0; }
program=$(cargo test --locked --no-run -p procpool --features mpi --test it 2>&1 \
    | sed -n 's/.*Executable.*(\(.*\))$/\1/p')

skip=()
leave_out() { shift; for test in "$@"; do skip+=(--skip "$test"); done; }
leave_out "they start copies of the test program, which would take part in the run of mpirun" \
    a_hundred_thousand_tiny_tasks_leave_memory_flat a_slow_consumer_bounds_the_memory \
    shared_memory_is_freed_when_either_side_is_done_or_killed \
    in_chaos_each_item_has_exactly_one_outcome pools_timeouts_and_crashes_by_the_hundred
leave_out "they pass handles, which exist on one host" \
    shared_handles_may_be_inside_of_a_context no_worker_can_change_what_another_reads \
    a_program_that_a_task_starts_inherits_none handles_in_results_are_whole
leave_out "they count the workers, of which each host has as many" \
    a_task_knows_its_worker a_broadcast_that_cannot_be_sent a_broadcast_ends_with_its_pool \
    a_large_argument_of_a_broadcast broadcast_calls_every_worker_once \
    broadcast_waits_for_busy_workers retired_workers_are_started_for_a_broadcast \
    events_report_what_happens_to_workers_and_tasks \
    idle_workers_end_and_start_again items_behind_a_slow_one_are_stolen \
    a_queued_a_running_and_a_finished_task_can_be_cancelled a_state_that_a_panic_has_left_behind \
    tasks_are_returned_in_the_order_in_which_they_complete
leave_out "items that one host gives back for another are assigned again" a_chunk_size_that_is_set_is_kept
leave_out "the slots of env_per_worker count from 0 on each host" environment_and_directory_are_as_set

# The others are about the timing of one worker, or of a pool of two.
filters=("$@")
[ $# -gt 0 ] || filters=(api::basics api::contexts api::streams api::tasks failure::user_code ipc::payloads)
timeout --kill-after=10 "${LIMIT:-400}" mpirun -n 3 --allow-run-as-root --oversubscribe --bind-to none \
    --mca pml ob1 --mca btl self,vader,tcp -x PROCPOOL_HOSTS=mpi \
    "$program" --test-threads=1 "${skip[@]}" "${filters[@]}" < /dev/null

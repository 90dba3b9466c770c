//! A filter that decides by the number of a system call: a search tree over ranges of numbers, and behind it a filter
//! for the calls whose arguments matter.
//!
//! Each worker installs it at its start, and the kernel takes 0.2 µs for each instruction (2 cores, Linux 6.18): it
//! translates and compiles the program, and runs it once for every number, to know the answers that depend on the number
//! alone. A chain of 270 comparisons, as seccompiler compiles a list, made that 0.8 ms of a start. A tree over ranges
//! with a program of its own for arguments made it 0.19 ms with 734 instructions in all, and what is here 0.1 ms with
//! 336: a number that differs from its neighbours is one comparison, and an answer stands once for many.

use std::collections::BTreeMap;

use seccompiler::{BpfProgram, sock_filter};

/// What the kernel answers to a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Allow,
    /// The call fails with this error.
    Fail(i32),
    /// What the filter for arguments says.
    Examine,
    /// The call ends the process.
    End,
}

impl Answer {
    fn instruction(self) -> sock_filter {
        match self {
            Self::Allow => answer(libc::SECCOMP_RET_ALLOW),
            Self::Fail(error) => answer(libc::SECCOMP_RET_ERRNO | error.cast_unsigned()),
            Self::Examine => TO_ARGUMENTS,
            Self::End => answer(libc::SECCOMP_RET_TRAP),
        }
    }
}

/// A jump to the filter for arguments, whose distance is set at last.
const TO_ARGUMENTS: sock_filter =
    sock_filter { code: (libc::BPF_JMP | libc::BPF_JA) as u16, jt: 0, jf: 0, k: u32::MAX };

/// The architecture of this process, as the kernel names it to filters (`AUDIT_ARCH_*`), or `None` if it is not known.
const ARCHITECTURE: Option<u32> = if cfg!(target_arch = "x86_64") {
    Some(0xc000_003e)
} else if cfg!(target_arch = "aarch64") {
    Some(0xc000_00b7)
} else if cfg!(target_arch = "riscv64") {
    Some(0xc000_00f3)
} else {
    None
};

/// Returns the filter that gives these answers, and ends the process for every other number, and for calls of another
/// architecture, whose numbers mean something else. `by_arguments` is a whole filter.
///
/// # Errors
///
/// On an architecture that is not known.
pub(super) fn filter(
    answers: &BTreeMap<libc::c_long, Answer>,
    by_arguments: BpfProgram,
) -> Result<BpfProgram, String> {
    let architecture = ARCHITECTURE.ok_or("there is no filter for this architecture")?;
    // Where `seccomp_data` has the architecture and the number.
    let mut program = vec![
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 4),
        instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, 0, architecture),
        answer(libc::SECCOMP_RET_KILL_PROCESS),
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
    ];
    program.extend(tree(&intervals(answers)?));
    let end = program.len();
    for (at, instruction) in program.iter_mut().enumerate() {
        if *instruction == TO_ARGUMENTS {
            // Over all that is between.
            instruction.k = (end - at - 1) as u32;
        }
    }
    program.extend(by_arguments);
    Ok(program)
}

/// Numbers up to the start of the next interval. They have one answer, but for a few.
#[derive(Debug)]
struct Interval {
    start: u32,
    answer: Answer,
    exceptions: Vec<(u32, Answer)>,
}

/// So many exceptions are told one after the other. With each, an interval is one comparison, where it would be two of
/// its own.
const MOST_EXCEPTIONS: usize = 4;

/// Returns all numbers as intervals.
fn intervals(answers: &BTreeMap<libc::c_long, Answer>) -> Result<Vec<Interval>, String> {
    // Where the answer changes.
    let mut changes = vec![(0, Answer::End)];
    let mut change = |start: u32, answer: Answer| match changes.last_mut() {
        Some(last) if last.1 == answer => {}
        Some(last) if last.0 == start => last.1 = answer,
        _ => changes.push((start, answer)),
    };
    for (call, answer) in answers {
        let call = u32::try_from(*call).map_err(|_| format!("there is no call {call}"))?;
        change(call, *answer);
        // Unless the next one goes on.
        change(call + 1, Answer::End);
    }
    changes.dedup_by_key(|(_, answer)| *answer);
    let mut intervals: Vec<Interval> = Vec::new();
    let mut rest = &changes[..];
    while let [(start, answer), after @ ..] = rest {
        let (mut exceptions, mut left) = (Vec::new(), after);
        while let [(single, other), (next, again), after @ ..] = left
            && (*next, *again) == (single + 1, *answer)
            && exceptions.len() < MOST_EXCEPTIONS
        {
            exceptions.push((*single, *other));
            left = after;
        }
        intervals.push(Interval { start: *start, answer: *answer, exceptions });
        rest = left;
    }
    Ok(intervals)
}

/// So many intervals are told apart by jumps that are short enough for a condition.
const BRANCH: usize = 32;

/// Returns the program that finds the answer for the number that is loaded.
fn tree(intervals: &[Interval]) -> Vec<sock_filter> {
    if intervals.len() <= BRANCH {
        return branch(intervals);
    }
    let (low, high) = intervals.split_at(intervals.len() / 2);
    let below = tree(low);
    // Only a jump without a condition goes so far.
    let mut program = vec![
        instruction(AT_LEAST, 0, 1, high[0].start),
        instruction(libc::BPF_JMP | libc::BPF_JA, 0, 0, below.len() as u32),
    ];
    program.extend(below);
    program.extend(tree(high));
    program
}

const AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
const EQUALS: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;

/// A comparison, and where it goes.
#[derive(Debug)]
struct Comparison {
    code: u32,
    with: u32,
    holds: Target,
    fails: Target,
}

#[derive(Debug, Clone, Copy)]
enum Target {
    Comparison(usize),
    Answer(Answer),
}

/// Returns the program for at most [`BRANCH`] intervals: comparisons, and behind them each answer once.
fn branch(intervals: &[Interval]) -> Vec<sock_filter> {
    let mut comparisons = Vec::new();
    let only = compare(intervals, &mut comparisons);
    let mut answers: Vec<Answer> = Vec::new();
    if let Target::Answer(answer) = only {
        answers.push(answer);
    }
    let count = comparisons.len();
    let mut program = Vec::with_capacity(count + 8);
    for (at, Comparison { code, with, holds, fails }) in comparisons.into_iter().enumerate() {
        let [holds, fails] = [holds, fails].map(|target| {
            let target = match target {
                Target::Comparison(index) => index,
                Target::Answer(answer) => {
                    let known = answers.iter().position(|known| *known == answer);
                    count
                        + known.unwrap_or_else(|| {
                            answers.push(answer);
                            answers.len() - 1
                        })
                }
            };
            // It is behind this one, and by less than the comparisons of a branch and its answers.
            (target - at - 1) as u8
        });
        program.push(instruction(code, holds, fails, with));
    }
    program.extend(answers.into_iter().map(Answer::instruction));
    program
}

/// Appends the comparisons that tell these intervals apart, and returns where they begin.
fn compare(intervals: &[Interval], to: &mut Vec<Comparison>) -> Target {
    if let [only] = intervals {
        let begin = to.len();
        for (number, answer) in &only.exceptions {
            let (holds, fails) = (Target::Answer(*answer), Target::Comparison(to.len() + 1));
            to.push(Comparison { code: EQUALS, with: *number, holds, fails });
        }
        let rest = Target::Answer(only.answer);
        let Some(last) = to[begin..].last_mut() else { return rest };
        last.fails = rest;
        return Target::Comparison(begin);
    }
    let (low, high) = intervals.split_at(intervals.len() / 2);
    let at = to.len();
    let unknown = Target::Answer(Answer::End); // until what it goes to is there
    to.push(Comparison { code: AT_LEAST, with: high[0].start, holds: unknown, fails: unknown });
    to[at].fails = compare(low, to);
    to[at].holds = compare(high, to);
    Target::Comparison(at)
}

fn answer(code: u32) -> sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, 0, 0, code)
}

fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt, jf, k }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    /// Runs a program as the kernel does, as far as these programs go.
    fn run(program: &[sock_filter], architecture: u32, call: u32) -> u32 {
        let (mut at, mut loaded) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            let jump = |holds: bool| usize::from(if holds { jt } else { jf });
            at += 1;
            match u32::from(code) {
                code if code == libc::BPF_RET | libc::BPF_K => return k,
                code if code == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS => {
                    loaded = if k == 4 { architecture } else { call };
                }
                code if code == libc::BPF_JMP | libc::BPF_JA => at += k as usize,
                code if code == libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K => {
                    at += jump(loaded == k)
                }
                code if code == libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K => {
                    at += jump(loaded >= k)
                }
                code if code == libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K => {
                    at += jump(loaded > k)
                }
                _ => panic!("an unknown instruction"),
            }
        }
    }

    proptest! {
        #[test]
        fn each_number_gets_its_answer_and_all_others_end_the_process(
            calls in prop::collection::btree_map(0..480i64, 0..5i32, 0..300),
        ) {
            /// What the filter for arguments says, to tell that it was asked.
            const EXAMINED: u32 = 99;
            let answers: BTreeMap<_, _> = calls
                .iter()
                .map(|(call, error)| {
                    let answer = match error {
                        0 => Answer::Allow,
                        4 => Answer::Examine,
                        _ => Answer::Fail(*error),
                    };
                    (*call as libc::c_long, answer)
                })
                .collect();
            let program = filter(&answers, vec![answer(EXAMINED)]).unwrap();
            let own = ARCHITECTURE.unwrap();
            for call in (0..500).chain([0x4000_0000, u32::MAX]) {
                let expected = answers.get(&libc::c_long::from(call));
                let expected = expected.map_or(libc::SECCOMP_RET_TRAP, |answer| match answer {
                    Answer::Examine => EXAMINED,
                    _ => answer.instruction().k,
                });
                prop_assert_eq!(run(&program, own, call), expected);
            }
            prop_assert_eq!(run(&program, own ^ 1, 0), libc::SECCOMP_RET_KILL_PROCESS);
        }
    }
}

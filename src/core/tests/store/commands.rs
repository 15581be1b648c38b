//! Commands from one process to another, and their answers.

use push_stream_core::store::*;

use crate::zone::*;

/// A text of this length that is unlike one of another length.
fn text(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index * 7 + len) as u8).collect()
}

fn used(test: &TestZone) -> u32 {
    let (free, all) = test.zone.free_blocks();
    all - free
}

#[test]
fn commands_are_taken_in_order_and_answered() {
    let test = TestZone::new(256);
    let (mut asker, mut target) = (test.worker(), test.worker());
    let lengths = [0, 1, 88, 89, 212, 213, 5000, COMMAND_BYTES];
    for (request, &len) in lengths.iter().enumerate() {
        asker
            .command(target.process(), 7, request as u64, &text(len), test.now)
            .unwrap();
        test.assert_whole();
    }
    assert!(target.has_mail() && target.is_woken() && !asker.has_mail());
    drain(&mut target);
    assert!(target.has_mail() && target.is_overlooked(), "a drain takes none");
    for &len in &lengths {
        let command = target.take_command().unwrap();
        assert_eq!((command.kind, &command.text), (7, &text(len)));
        test.assert_whole();
        target.answer(command, &text(COMMAND_BYTES - len), test.now).unwrap();
        test.assert_whole();
    }
    assert!(target.take_command().is_none() && !target.has_mail());
    assert!(asker.has_mail() && asker.is_woken());
    for (request, &len) in lengths.iter().enumerate() {
        let wanted = Answer {
            request: request as u64,
            kind: 7,
            slot: target.slot(),
            reply: Reply::Text(text(COMMAND_BYTES - len)),
        };
        assert_eq!(asker.take_answer(), Some(wanted));
        test.assert_whole();
    }
    assert!(asker.take_answer().is_none() && !asker.has_mail());
    assert_eq!(used(&test), 0);
}

#[test]
fn a_process_may_ask_itself() {
    let test = TestZone::new(128);
    let mut worker = test.worker();
    worker.command(worker.process(), 1, 5, b"do", test.now).unwrap();
    assert!(worker.is_woken());
    let command = worker.take_command().unwrap();
    worker.answer(command, b"done", test.now).unwrap();
    assert_eq!(worker.take_answer().unwrap().reply, Reply::Text(b"done".to_vec()));
    worker.command(worker.process(), 1, 6, &text(500), test.now).unwrap();
    worker.command(worker.process(), 1, 7, &text(500), test.now).unwrap();
    worker.take_command().unwrap();
    worker.release();
    test.assert_whole();
    assert_eq!(used(&test), 0);
}

#[test]
fn what_cannot_be_posted_is_refused() {
    let test = TestZone::with_slots(256, 4);
    let (mut asker, mut target) = (test.worker(), test.worker());
    let to = target.process();
    for request in 0..COMMANDS_PER_SLOT {
        asker.command(to, 1, request.into(), b"x", test.now).unwrap();
    }
    assert_eq!(asker.command(to, 1, 99, b"x", test.now), Err(Unposted::Busy));
    let command = target.take_command().unwrap();
    asker.command(to, 1, 99, b"x", test.now).unwrap();
    target.answer(command, b"", test.now).unwrap();
    assert_eq!(
        asker.command(to, 1, 0, &text(COMMAND_BYTES + 1), test.now),
        Err(Unposted::TooLong)
    );
    for gone in [
        Process {
            generation: to.generation + 1,
            ..to
        },
        Process { slot: 3, ..to },
        Process { slot: 4, ..to },
        Process { slot: u16::MAX, ..to },
    ] {
        assert_eq!(asker.command(gone, 1, 0, b"x", test.now), Err(Unposted::Gone));
    }
    assert_eq!(asker.processes(), [asker.process(), to]);
    target.release();
    assert_eq!(asker.command(to, 1, 0, b"x", test.now), Err(Unposted::Gone));
    let successor = test.worker();
    assert_eq!(successor.slot(), to.slot);
    assert_eq!(asker.command(to, 1, 0, b"x", test.now), Err(Unposted::Gone));
    test.assert_whole();
}

#[test]
fn a_full_zone_refuses_and_still_takes_a_short_answer() {
    let test = TestZone::new(128);
    let (mut asker, mut target) = (test.worker(), test.worker());
    asker.command(target.process(), 1, 1, b"x", test.now).unwrap();
    let command = target.take_command().unwrap();
    while publish(&mut asker, "a", "x", &limits(), test.now).is_ok() {}
    assert!(matches!(
        asker.command(target.process(), 1, 2, &text(500), test.now),
        Err(Unposted::Refused(Refusal::Full))
    ));
    let (command, refusal) = target.answer(command, &text(500), test.now).unwrap_err();
    assert_eq!(refusal, Refusal::Full);
    test.assert_whole();
    target.answer(command, &text(SHORT_ANSWER), test.now).unwrap();
    assert_eq!(asker.take_answer().unwrap().reply, Reply::Text(text(SHORT_ANSWER)));
    test.assert_whole();
}

#[test]
fn a_command_may_be_withdrawn_until_it_is_taken() {
    let test = TestZone::new(128);
    let (mut asker, mut target) = (test.worker(), test.worker());
    for request in 1..=3 {
        asker
            .command(target.process(), 1, request, &text(900), test.now)
            .unwrap();
    }
    assert!(asker.withdraw(2) && !asker.withdraw(2));
    test.assert_whole();
    let first = target.take_command().unwrap();
    assert!(!asker.withdraw(1));
    target.answer(first, b"", test.now).unwrap();
    assert!(!asker.withdraw(1));
    assert!(target.take_command().is_some() && target.take_command().is_none());
}

#[test]
fn the_dead_leave_no_commands() {
    let test = TestZone::with_slots(256, 4);
    let mut survivor = test.worker();
    let mut dying = test.worker();
    let dead = dying.process();
    for request in 1..=3 {
        survivor.command(dead, 1, request, &text(300), test.now).unwrap();
        dying
            .command(survivor.process(), 1, request, &text(300), test.now)
            .unwrap();
    }
    let taken = survivor.take_command().unwrap();
    let answered = survivor.take_command().unwrap();
    survivor.answer(answered, &text(300), test.now).unwrap();
    dying.take_command().unwrap();
    let answered = dying.take_command().unwrap();
    dying.answer(answered, b"done", test.now).unwrap();
    // As reaping a dead process does.
    dying.release();
    test.assert_whole();
    let replies: Vec<_> = std::iter::from_fn(|| survivor.take_answer())
        .map(|answer| (answer.request, answer.reply))
        .collect();
    assert_eq!(
        replies,
        [(2, Reply::Text(b"done".to_vec())), (3, Reply::Gone), (1, Reply::Gone),]
    );
    assert!(survivor.take_command().is_none(), "the third was withdrawn");
    let successor = test.worker();
    assert_eq!(successor.slot(), dead.slot);
    survivor.answer(taken, &text(300), test.now).unwrap();
    assert!(!successor.has_mail(), "an answer for the dead is not its successor's");
    test.assert_whole();
    assert_eq!(used(&test), 0);
}

/// Every process asks every process, while one of them is killed again and again: whoever lives has an answer to each.
#[test]
fn all_are_answered_while_processes_die() {
    use std::time::{Duration, Instant};
    let test = TestZone::with_slots(1024, 8);
    let end = Instant::now() + Duration::from_secs(2);
    let life = |until: Instant, asked: &mut u64| {
        let mut worker = test.worker();
        let mut waiting = std::collections::BTreeSet::new();
        loop {
            let asking = Instant::now() < until;
            if !asking && waiting.is_empty() {
                break;
            }
            assert!(
                Instant::now() < until + Duration::from_secs(20),
                "{waiting:?} have no answer"
            );
            for to in worker.processes() {
                let len = (*asked * 37 % 700) as usize;
                if asking && waiting.len() < 100 && worker.command(to, 3, *asked, &text(len), test.now).is_ok() {
                    waiting.insert((*asked, to.slot, len));
                    *asked += 1;
                }
            }
            while let Some(command) = worker.take_command() {
                let echo = command.text.clone();
                worker.answer(command, &echo, test.now).unwrap();
            }
            while let Some(answer) = worker.take_answer() {
                let &key = waiting
                    .iter()
                    .find(|&&(request, ..)| request == answer.request)
                    .expect("an answer to a question");
                assert_eq!(key.1, answer.slot);
                if let Reply::Text(echo) = answer.reply {
                    assert_eq!(echo, text(key.2));
                }
                waiting.remove(&key);
            }
            worker.tick(test.now);
        }
        // Those that still ask.
        let rest = Instant::now() + Duration::from_millis(500);
        while Instant::now() < rest {
            while let Some(command) = worker.take_command() {
                worker.answer(command, b"late", test.now).unwrap();
            }
        }
        worker.release();
    };
    let stable: Vec<_> = (0..3)
        .map(|_| {
            fork(|| {
                let mut asked = 0;
                life(end, &mut asked);
                assert!(asked > 100, "it asked only {asked}");
            })
        })
        .collect();
    let mut kills = 0;
    while Instant::now() < end {
        let victim = fork(|| life(end + Duration::from_secs(60), &mut 0));
        std::thread::sleep(Duration::from_millis(20 + kills % 13));
        // SAFETY: takes no pointers.
        unsafe { libc::kill(victim, libc::SIGKILL) };
        wait(victim);
        kills += 1;
    }
    for child in stable {
        assert!(!wait(child), "it ended by itself");
    }
    let mut last = test.worker();
    last.tick(test.now);
    test.assert_whole();
    assert_eq!(used(&test), 0, "after {kills} deaths");
    assert!(kills > 10, "only {kills} deaths");
}

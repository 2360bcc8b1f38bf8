//! Any sequence of operations: reads return the appended items.

use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    /// Bodies for conversations, a change, and whether an erasure of an earlier entry.
    Append(Vec<(u64, Vec<usize>)>, bool, bool),
    State,
    Kill,
    Close,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let lengths = vec(prop_oneof![8 => 0..300usize, 1 => 3000..9000usize], 1..6);
    let append = (vec((1..4u64, lengths), 0..4), any::<bool>(), any::<bool>())
        .prop_map(|(runs, change, erase)| Step::Append(runs, change, erase));
    let step = prop_oneof![8 => append, 2 => Just(Step::State), 2 => Just(Step::Kill), 1 => Just(Step::Close)];
    vec(step, 1..24)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn random__log_returns_what_was_appended(steps in steps()) {
        let mut fixture = Fixture::new();
        let mut log = fixture.open().log;
        let mut erased = BTreeSet::new();
        let mut places: Vec<RunPlace> = Vec::new();
        let mut boundaries = vec![(START, 1)];
        for step in steps {
            match step {
                Step::Append(runs, change, erase) => {
                    let mut batch = BatchBuilder::new();
                    for (conversation, lengths) in runs {
                        let bodies: Vec<_> = lengths.iter().map(|n| vec![b'x'; *n]).collect();
                        let bodies: Vec<_> = bodies.iter().map(Vec::as_slice).collect();
                        fixture.add(&mut batch, conversation, &bodies);
                    }
                    let target = places.first().filter(|_| erase).copied();
                    if let Some(place) = target {
                        let (conversation, n) = (place.conversation, place.first);
                        let commit = Commit([0; 32]);
                        let erasure = Erasure { conversation, n, time_ms: 1, commit };
                        batch.erasure(&erasure);
                        fixture.items.push(Item::Erasure(erasure));
                    }
                    if change {
                        batch.change(b"change");
                        fixture.items.push(Item::Change(b"change".to_vec()));
                    }
                    let appended = log.writer.append(&mut batch).unwrap();
                    boundaries.extend([
                        (appended.position, appended.first),
                        (appended.end, appended.next),
                    ]);
                    if let Some(place) = target {
                        log.writer.segments().erase(&place, place.first).unwrap();
                        fixture.expect_erased(place.conversation, place.first);
                        erased.insert((place.conversation, place.first));
                        places.remove(0);
                    }
                    places.extend(appended.runs);
                }
                Step::State => log.writer.state_durable().unwrap(),
                Step::Kill => {
                    drop(log);
                    log = fixture.open().log;
                    prop_assert!(!log.closed && log.torn.is_none());
                }
                Step::Close => {
                    log.writer.close().unwrap();
                    log = fixture.open().log;
                    prop_assert!(log.closed);
                    // Else a kill finds it closed.
                    let mut batch = BatchBuilder::new();
                    batch.change(b"opened");
                    fixture.items.push(Item::Change(b"opened".to_vec()));
                    log.writer.append(&mut batch).unwrap();
                }
            }
        }
        let (next, end) = (log.writer.next_seq(), log.writer.end());
        drop(log);
        for (position, next_seq) in boundaries {
            prop_assert!(is_boundary(&fixture.path(), position, next_seq).unwrap());
            let from = Resume { position: Some(position), next_seq };
            let opened = fixture.try_open_from(from).unwrap();
            prop_assert_eq!(&opened.items[..], &fixture.items[usize::try_from(next_seq - 1).unwrap()..]);
            prop_assert!(opened.log.damaged.is_empty());
            prop_assert!(opened.log.unfinished_erasures.is_empty());
            prop_assert_eq!((opened.log.writer.next_seq(), opened.log.writer.end()), (next, end));
        }
    }
}

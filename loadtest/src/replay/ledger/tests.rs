//! Faults planted by hand: each must be found, and nothing else.

use super::super::conversation::Shape;
use super::*;

/// A room of two members and six lines, driven by hand.
struct Room {
    ledger: RoomLedger,
    conversation: Arc<Conversation>,
    now: Instant,
}

const BASE: u64 = 100;

impl Room {
    fn new() -> Self {
        let shape = Shape {
            rooms: 1,
            people: 2,
            messages: 6,
            seed: 3,
        };
        let conversation = Arc::new(Conversation::generate(&shape, None).unwrap());
        let mut ledger = RoomLedger::new(Arc::clone(&conversation), 0);
        for member in 0..2 {
            ledger.subscribed(member, None, false, &position(BASE));
        }
        Self {
            ledger,
            conversation,
            now: Instant::now(),
        }
    }

    fn say_all(&mut self) {
        for number in 0..6 {
            self.ledger.sent(number, self.now);
            self.ledger.acknowledged(number, answer(number));
        }
    }

    fn deliver(&mut self, member: usize, number: usize, offset: u64, is_recovered: bool) {
        let publication = Publication {
            channel: "chat:room-0".into(),
            offset,
            epoch: "E".into(),
            data: self.conversation.lines[number].data.as_str().into(),
            tags: Default::default(),
            info: None,
            is_recovered,
        };
        self.ledger.delivered(member, &publication, self.now);
    }

    fn deliver_rightly(&mut self, member: usize, numbers: impl IntoIterator<Item = usize>) {
        for number in numbers {
            self.deliver(member, number, offset_of(number), false);
        }
    }

    fn rows(&self) -> Vec<ArchivedMessage> {
        (0..6)
            .map(|number| {
                let line = &self.conversation.lines[number];
                ArchivedMessage {
                    id: format!("id-{number}"),
                    epoch: "E".to_owned(),
                    offset: offset_of(number),
                    user: self.conversation.people[line.author].name.clone(),
                    data: serde_json::from_str(&line.data).unwrap(),
                }
            })
            .collect()
    }

    fn counts(self) -> Counts {
        self.ledger.finish().0
    }
}

fn offset_of(number: usize) -> u64 {
    BASE + 1 + number as u64
}

fn position(offset: u64) -> Position {
    Position {
        epoch: "E".into(),
        offset,
    }
}

fn answer(number: usize) -> Acknowledgement {
    Acknowledgement {
        id: format!("id-{number}"),
        epoch: "E".to_owned(),
        offset: offset_of(number),
    }
}

/// Everything right, but for what `plant` does to the second member, who saw lines 1 and 2.
fn with_fault(plant: impl FnOnce(&mut Room)) -> Counts {
    let mut room = Room::new();
    room.say_all();
    room.deliver_rightly(0, 0..6);
    room.deliver_rightly(1, 0..2);
    plant(&mut room);
    room.counts()
}

#[test]
fn a_faultless_run_is_clean() {
    let mut room = Room::new();
    room.say_all();
    room.deliver_rightly(0, 0..6);
    room.deliver_rightly(1, 0..6);
    let rows = room.rows();
    assert!(room.ledger.is_quiet() && room.ledger.is_archived(&rows));
    room.ledger.archived(&rows);
    let counts = room.counts();
    assert!(counts.is_clean(), "{counts:?}");
    assert_eq!((counts.acknowledged, counts.deliveries), (6, 12));
}

#[test]
fn a_lost_message_and_its_gap_are_found() {
    let counts = with_fault(|room| room.deliver_rightly(1, 3..6));
    assert_eq!((counts.lost, counts.gaps), (1, 1));
    let at_the_end = with_fault(|room| room.deliver_rightly(1, 2..5));
    assert_eq!((at_the_end.lost, at_the_end.gaps), (1, 0));
}

#[test]
fn a_second_delivery_is_found() {
    let counts = with_fault(|room| {
        room.deliver_rightly(1, 2..6);
        room.deliver(1, 5, offset_of(5), false);
    });
    assert_eq!((counts.duplicates, counts.lost), (1, 0));
}

#[test]
fn two_orders_are_found() {
    let counts = with_fault(|room| {
        room.deliver(1, 3, offset_of(2), false);
        room.deliver(1, 2, offset_of(3), false);
        room.deliver_rightly(1, 4..6);
    });
    assert_eq!((counts.order_differences, counts.lost), (2, 0));
}

#[test]
fn a_false_claim_of_recovery_is_found() {
    let counts = with_fault(|room| {
        let from = position(offset_of(1));
        room.ledger
            .subscribed(1, Some(&from), true, &position(offset_of(4)));
        room.deliver(1, 2, offset_of(2), true);
        room.deliver(1, 4, offset_of(4), true);
        room.deliver_rightly(1, 5..6);
    });
    assert_eq!(
        (counts.false_recovered, counts.lost, counts.gaps),
        (1, 1, 1)
    );
    assert_eq!(counts.recovered_deliveries, 2);
}

#[test]
fn an_honest_refusal_of_recovery_is_counted_but_clean() {
    let counts = with_fault(|room| {
        let from = position(offset_of(1));
        room.ledger
            .subscribed(1, Some(&from), false, &position(offset_of(4)));
        room.deliver_rightly(1, 5..6);
    });
    assert!(counts.is_clean(), "{counts:?}");
    assert_eq!((counts.unrecovered, counts.unrecovered_messages), (1, 3));
}

#[test]
fn what_nobody_sent_is_found() {
    let counts = with_fault(|room| {
        room.deliver_rightly(1, 2..6);
        let publication = Publication {
            channel: "chat:room-0".into(),
            offset: offset_of(6),
            epoch: "E".into(),
            data: r#"{"n":1,"text":"forged"}"#.into(),
            tags: Default::default(),
            info: None,
            is_recovered: false,
        };
        room.ledger.delivered(1, &publication, room.now);
    });
    assert_eq!(counts.phantoms, 1);
}

#[test]
fn an_author_whose_lines_changed_places_is_found() {
    let mut room = Room::new();
    let author = room.conversation.lines[5].author;
    let other = (0..5)
        .rev()
        .find(|number| room.conversation.lines[*number].author == author)
        .unwrap();
    for number in 0..6 {
        room.ledger.sent(number, room.now);
        let mut answer = answer(number);
        // Swap this author's last two.
        if number == 5 || number == other {
            answer.offset = offset_of(5 + other - number);
        }
        room.ledger.acknowledged(number, answer);
    }
    assert!(room.counts().order_differences > 0);
}

#[test]
fn faults_of_an_archive_are_found() {
    type Plant = fn(&mut Vec<ArchivedMessage>);
    type Count = fn(&Counts) -> usize;
    let faults: [(&str, Plant, Count); 5] = [
        ("lost", |rows| drop(rows.remove(2)), |c| c.lost_archived),
        (
            "doubled",
            |rows| rows.insert(3, rows[2].clone()),
            |c| c.duplicates_archived,
        ),
        ("swapped", |rows| rows.swap(2, 3), |c| c.order_differences),
        (
            "another epoch",
            |rows| rows[2].epoch = "F".to_owned(),
            |c| c.order_differences,
        ),
        (
            "another author",
            |rows| rows[2].user = "mallory".to_owned(),
            |c| c.phantoms,
        ),
    ];
    for (name, plant, count) in faults {
        let counts = with_fault(|room| {
            room.deliver_rightly(1, 2..6);
            let mut rows = room.rows();
            plant(&mut rows);
            room.ledger.archived(&rows);
        });
        assert!(count(&counts) > 0, "{name}: {counts:?}");
        assert!(!counts.is_clean());
    }
}

#[test]
fn a_store_may_write_the_same_json_differently() {
    let counts = with_fault(|room| {
        room.deliver_rightly(1, 2..6);
        let mut rows = room.rows();
        let value: serde_json::Value = serde_json::from_str(rows[0].data.get()).unwrap();
        rows[0].data =
            serde_json::from_str(&format!("{{ \"text\": {}, \"n\": 1 }}", value["text"])).unwrap();
        room.ledger.archived(&rows);
    });
    assert!(counts.is_clean(), "{counts:?}");
}

#[test]
fn lines_without_an_answer_are_counted() {
    let mut room = Room::new();
    room.ledger.sent(0, room.now);
    assert_eq!(room.counts().unacknowledged, 6);
}

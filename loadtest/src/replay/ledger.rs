//! The checker: what was sent, acknowledged, delivered and archived, and what does not agree.
//!
//! It knows no socket and no clock, so a test can plant a fault by hand and see it found. Offsets
//! of durable channels never restart, so an offset alone names a place in a room for good, over
//! all its epochs.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Serialize;
use tokio::time::Instant;

use super::conversation::{Conversation, number_of};
use crate::client::{Position, Publication};
use crate::latency::Latencies;

/// Examples of what is wrong that a report keeps, for each room.
const FINDINGS_MAX: usize = 10;

/// What was counted; everything from `lost` to `refused` must be 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Messages whose author got an answer.
    pub acknowledged: usize,
    /// Publications that reached a member, live or recovered.
    pub deliveries: usize,
    /// Those of them that came by recovery.
    pub recovered_deliveries: usize,
    /// Acknowledged messages that a member never saw.
    pub lost: usize,
    /// Acknowledged messages that are not in an archive.
    pub lost_archived: usize,
    /// Messages that a member saw twice.
    pub duplicates: usize,
    /// Messages with more than one row in an archive.
    pub duplicates_archived: usize,
    /// Places that two members, the author's answer or an archive fill differently, and messages
    /// of one author that changed places.
    pub order_differences: usize,
    /// Jumps of the offset inside an epoch.
    pub gaps: usize,
    /// Messages missed by a member whom the server told `recovered: true`.
    pub false_recovered: usize,
    /// Deliveries or rows of something nobody sent, or not as it was sent.
    pub phantoms: usize,
    /// Messages that the server refused for good.
    pub refused: usize,
    /// Messages that were never acknowledged.
    pub unacknowledged: usize,
    /// Times a member was told `recovered: false`.
    pub unrecovered: usize,
    /// Messages that members had to read from the archive for it.
    pub unrecovered_messages: usize,
}

impl Counts {
    /// True when nothing is wrong; being told `recovered: false` honestly is not wrong.
    pub fn is_clean(&self) -> bool {
        let wrong = [
            self.lost,
            self.lost_archived,
            self.duplicates,
            self.duplicates_archived,
            self.order_differences,
            self.gaps,
            self.false_recovered,
            self.phantoms,
            self.refused,
            self.unacknowledged,
        ];
        wrong.iter().all(|count| *count == 0)
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.acknowledged += other.acknowledged;
        self.deliveries += other.deliveries;
        self.recovered_deliveries += other.recovered_deliveries;
        self.lost += other.lost;
        self.lost_archived += other.lost_archived;
        self.duplicates += other.duplicates;
        self.duplicates_archived += other.duplicates_archived;
        self.order_differences += other.order_differences;
        self.gaps += other.gaps;
        self.false_recovered += other.false_recovered;
        self.phantoms += other.phantoms;
        self.refused += other.refused;
        self.unacknowledged += other.unacknowledged;
        self.unrecovered += other.unrecovered;
        self.unrecovered_messages += other.unrecovered_messages;
    }
}

/// The answer to a `message.send`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
pub struct Acknowledgement {
    /// The message's id.
    pub id: String,
    /// Identity of the stream that gave the offset.
    pub epoch: String,
    /// Place in the room.
    pub offset: u64,
}

/// A row of an archive.
#[derive(Debug, Clone, serde::Deserialize)]
pub struct ArchivedMessage {
    /// The message's id.
    pub id: String,
    /// Identity of the stream that gave the offset.
    pub epoch: String,
    /// Place in the room.
    pub offset: u64,
    /// The author.
    #[serde(default)]
    pub user: String,
    /// What was published.
    pub data: Box<serde_json::value::RawValue>,
}

/// Everything known about one room.
#[derive(Debug)]
pub struct RoomLedger {
    room: usize,
    conversation: Arc<Conversation>,
    /// The room's lines, by number.
    lines: HashMap<usize, LineLedger>,
    /// Which line has which offset.
    places: HashMap<u64, usize>,
    members: Vec<MemberLedger>,
    /// Smallest offset that a member began with: the archive is read from there.
    baseline: Option<u64>,
    counts: Counts,
    latency: Latencies,
    findings: Vec<String>,
}

#[derive(Debug, Default)]
struct LineLedger {
    sent_at: Option<Instant>,
    acknowledgement: Option<Acknowledgement>,
}

#[derive(Debug, Default)]
struct MemberLedger {
    position: Option<Position>,
    /// A new epoch's offsets begin elsewhere: one jump is right.
    may_jump: bool,
    seen: Seen,
    /// Offsets that the server claims to have handed over after a reconnect.
    recovered: Vec<Range>,
    /// Offsets that the server said it could not hand over.
    excused: Vec<Range>,
}

/// Offsets above `after`, up to `upto`.
#[derive(Debug, Clone, Copy)]
struct Range {
    after: u64,
    upto: u64,
}

impl Range {
    fn holds(self, offset: u64) -> bool {
        offset > self.after && offset <= self.upto
    }
}

/// A set of line numbers.
#[derive(Debug, Default)]
struct Seen {
    words: Vec<u64>,
}

impl Seen {
    /// Returns false when the number was there already.
    fn insert(&mut self, number: usize) -> bool {
        let word = number / 64;
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        let bit = 1 << (number % 64);
        let is_new = self.words[word] & bit == 0;
        self.words[word] |= bit;
        is_new
    }

    fn holds(&self, number: usize) -> bool {
        let word = self.words.get(number / 64).copied().unwrap_or_default();
        word & (1 << (number % 64)) != 0
    }
}

impl RoomLedger {
    /// An empty ledger of a room.
    pub fn new(conversation: Arc<Conversation>, room: usize) -> Self {
        let members = conversation.rooms[room].members.len();
        Self {
            room,
            lines: HashMap::new(),
            places: HashMap::new(),
            members: (0..members).map(|_| MemberLedger::default()).collect(),
            baseline: None,
            counts: Counts::default(),
            latency: Latencies::default(),
            findings: Vec::new(),
            conversation,
        }
    }

    /// A line was sent, perhaps not for the first time.
    pub fn sent(&mut self, number: usize, now: Instant) {
        let line = self.lines.entry(number).or_default();
        line.sent_at.get_or_insert(now);
    }

    /// A line was acknowledged.
    pub fn acknowledged(&mut self, number: usize, acknowledgement: Acknowledgement) {
        self.place(acknowledgement.offset, number, "the author's answer");
        let line = self.lines.entry(number).or_default();
        if line.acknowledgement.is_none() {
            self.counts.acknowledged += 1;
        }
        line.acknowledgement = Some(acknowledgement);
    }

    /// A line was refused for good.
    pub fn refused(&mut self, number: usize, why: &str) {
        self.counts.refused += 1;
        self.finding(format!("line {} was refused: {why}", number + 1));
    }

    /// A member's subscribe was answered.
    pub fn subscribed(
        &mut self,
        member: usize,
        from: Option<&Position>,
        recovered: bool,
        position: &Position,
    ) {
        let baseline = self.baseline.unwrap_or(position.offset);
        self.baseline = Some(baseline.min(position.offset));
        let ledger = &mut self.members[member];
        match from {
            Some(from) if recovered => {
                ledger.recovered.push(Range {
                    after: from.offset,
                    upto: position.offset,
                });
                ledger.may_jump = from.epoch != position.epoch;
                // What was recovered is delivered next and moves the position on.
                ledger.position = Some(Position {
                    epoch: Arc::clone(&position.epoch),
                    offset: from.offset,
                });
            }
            Some(from) => {
                ledger.excused.push(Range {
                    after: from.offset,
                    upto: position.offset,
                });
                ledger.position = Some(position.clone());
                self.counts.unrecovered += 1;
            }
            None => ledger.position = Some(position.clone()),
        }
    }

    /// A publication reached a member.
    pub fn delivered(&mut self, member: usize, publication: &Publication, now: Instant) {
        self.counts.deliveries += 1;
        let Some(number) = self.line_of(&publication.data) else {
            self.counts.phantoms += 1;
            self.finding(format!(
                "offset {} holds what nobody sent: {}",
                publication.offset, publication.data
            ));
            return;
        };
        if publication.is_recovered {
            self.counts.recovered_deliveries += 1;
        } else if let Some(sent_at) = self.lines.get(&number).and_then(|line| line.sent_at) {
            self.latency.record(now - sent_at);
        }
        if publication.offset > 0 {
            self.moved(member, publication);
            self.place(publication.offset, number, "a member");
        }
        if !self.members[member].seen.insert(number) {
            self.counts.duplicates += 1;
            self.finding(format!("member {member} saw line {} twice", number + 1));
        }
    }

    /// The number of a line of this room that was sent exactly so.
    fn line_of(&self, data: &str) -> Option<usize> {
        let number = number_of(data)?;
        let line = self.conversation.lines.get(number)?;
        let is_sent = self.lines.contains_key(&number);
        (line.room == self.room && line.data == data && is_sent).then_some(number)
    }

    /// Checks that a member's offsets are contiguous.
    fn moved(&mut self, member: usize, publication: &Publication) {
        let ledger = &mut self.members[member];
        let position = ledger.position.get_or_insert_with(|| Position {
            epoch: Arc::clone(&publication.epoch),
            offset: 0,
        });
        let expected = position.offset + 1;
        if publication.offset == expected {
            position.offset = publication.offset;
            return;
        }
        if publication.offset > expected {
            position.offset = publication.offset;
            if std::mem::take(&mut ledger.may_jump) {
                return;
            }
            self.counts.gaps += 1;
        } else {
            self.counts.order_differences += 1;
        }
        self.finding(format!(
            "member {member} got offset {} where {expected} comes next",
            publication.offset
        ));
    }

    /// Checks that everybody has the same line at an offset.
    fn place(&mut self, offset: u64, number: usize, who: &str) {
        let placed = *self.places.entry(offset).or_insert(number);
        if placed != number {
            self.counts.order_differences += 1;
            self.finding(format!(
                "{who} has line {} at offset {offset}, another has line {}",
                number + 1,
                placed + 1
            ));
        }
    }

    /// Offset to read the archive from, exclusive.
    pub fn baseline(&self) -> u64 {
        self.baseline.unwrap_or_default()
    }

    /// True when every acknowledged line was seen by every member that was not excused from it.
    pub fn is_quiet(&self) -> bool {
        self.missed().next().is_none()
    }

    /// Every acknowledged line that a member did not see, without those it was excused from.
    fn missed(&self) -> impl Iterator<Item = (usize, usize, u64)> {
        self.acknowledgements().flat_map(|(number, answer)| {
            self.members
                .iter()
                .enumerate()
                .filter(move |(_, ledger)| {
                    !ledger.seen.holds(number) && !ledger.is_excused(answer.offset)
                })
                .map(move |(member, _)| (number, member, answer.offset))
        })
    }

    fn acknowledgements(&self) -> impl Iterator<Item = (usize, &Acknowledgement)> {
        self.lines.iter().filter_map(|(number, line)| {
            line.acknowledgement
                .as_ref()
                .map(|acknowledgement| (*number, acknowledgement))
        })
    }

    /// True when an archive has every acknowledged line.
    pub fn is_archived(&self, rows: &[ArchivedMessage]) -> bool {
        let ids: std::collections::HashSet<&str> = rows.iter().map(|row| row.id.as_str()).collect();
        self.acknowledgements()
            .all(|(_, answer)| ids.contains(answer.id.as_str()))
    }

    /// Compares an archive's rows, as it returned them, with what was acknowledged and seen.
    pub fn archived(&mut self, rows: &[ArchivedMessage]) {
        let mut by_id: HashMap<String, (usize, Acknowledgement)> = self
            .acknowledgements()
            .map(|(number, answer)| (answer.id.clone(), (number, answer.clone())))
            .collect();
        let mut ids = std::collections::HashSet::new();
        let mut last_offset = 0;
        for row in rows {
            if !ids.insert(row.id.as_str()) {
                self.counts.duplicates_archived += 1;
                self.finding(format!("id {} has more than one row", row.id));
            }
            if row.offset <= last_offset {
                self.counts.order_differences += 1;
                self.finding(format!(
                    "row of offset {} comes after {last_offset}",
                    row.offset
                ));
            }
            last_offset = row.offset;
            let Some(number) = self.line_of_row(row) else {
                self.counts.phantoms += 1;
                self.finding(format!("row of what nobody sent, id {}", row.id));
                continue;
            };
            self.place(row.offset, number, "the archive");
            if let Some((acknowledged, answer)) = by_id.remove(&row.id) {
                let is_same = acknowledged == number
                    && answer.offset == row.offset
                    && answer.epoch == row.epoch;
                if !is_same {
                    self.counts.order_differences += 1;
                    self.finding(format!(
                        "line {} was acknowledged at {}/{} and is archived at {}/{}",
                        number + 1,
                        answer.epoch,
                        answer.offset,
                        row.epoch,
                        row.offset
                    ));
                }
            }
        }
        for (id, (number, _)) in by_id {
            if !ids.contains(id.as_str()) {
                self.counts.lost_archived += 1;
                self.finding(format!("line {} (id {id}) is not archived", number + 1));
            }
        }
    }

    /// A store may write the same JSON differently (order of keys, spaces); the value must stay.
    fn line_of_row(&self, row: &ArchivedMessage) -> Option<usize> {
        if let Some(number) = self.line_of(row.data.get()) {
            return self.is_author(number, &row.user).then_some(number);
        }
        let value: serde_json::Value = serde_json::from_str(row.data.get()).ok()?;
        let number = usize::try_from(value.get("n")?.as_u64()?)
            .ok()?
            .checked_sub(1)?;
        let line = self.conversation.lines.get(number)?;
        let sent: serde_json::Value = serde_json::from_str(&line.data).ok()?;
        let is_right = sent == value
            && line.room == self.room
            && self.lines.contains_key(&number)
            && self.is_author(number, &row.user);
        is_right.then_some(number)
    }

    fn is_author(&self, number: usize, user: &str) -> bool {
        let author = self.conversation.lines[number].author;
        self.conversation.people[author].name == user
    }

    /// Counts what can only be known at the end, and returns everything.
    pub fn finish(mut self) -> (Counts, Latencies, Vec<String>) {
        let missed: Vec<_> = self.missed().collect();
        for (number, member, offset) in missed {
            self.counts.lost += 1;
            let was_claimed = self.members[member]
                .recovered
                .iter()
                .any(|range| range.holds(offset));
            self.counts.false_recovered += usize::from(was_claimed);
            self.finding(format!(
                "member {member} never saw line {} at offset {offset}{}",
                number + 1,
                if was_claimed { ", told recovered" } else { "" }
            ));
        }
        self.counts.unrecovered_messages = self.excused_messages();
        self.counts.unacknowledged = self.unacknowledged();
        self.check_authors();
        (self.counts, self.latency, self.findings)
    }

    fn excused_messages(&self) -> usize {
        self.acknowledgements()
            .map(|(number, answer)| {
                self.members
                    .iter()
                    .filter(|ledger| !ledger.seen.holds(number) && ledger.is_excused(answer.offset))
                    .count()
            })
            .sum()
    }

    fn unacknowledged(&self) -> usize {
        let lines = self.conversation.lines.iter();
        let said_here = lines.filter(|line| line.room == self.room).count();
        said_here - self.counts.acknowledged
    }

    /// What one author said one after the other stands one after the other.
    fn check_authors(&mut self) {
        let mut answers: Vec<(usize, u64)> = self
            .acknowledgements()
            .map(|(number, answer)| (number, answer.offset))
            .collect();
        answers.sort_unstable();
        let mut last: HashMap<usize, u64> = HashMap::new();
        for (number, offset) in answers {
            let author = self.conversation.lines[number].author;
            let before = last.insert(author, offset);
            if before.is_some_and(|before| before >= offset) {
                self.counts.order_differences += 1;
                self.finding(format!(
                    "line {} stands before its author's last",
                    number + 1
                ));
            }
        }
    }

    fn finding(&mut self, text: String) {
        if self.findings.len() < FINDINGS_MAX {
            let room = &self.conversation.rooms[self.room].name;
            self.findings.push(format!("{room}: {text}"));
        }
    }
}

impl MemberLedger {
    fn is_excused(&self, offset: u64) -> bool {
        self.excused.iter().any(|range| range.holds(offset))
    }
}

#[cfg(test)]
mod tests;

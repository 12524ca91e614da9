//! What is said: a recorded conversation from a file, or one made from a seed.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::Deserialize;

/// Rooms, the people in them, and what they say when.
#[derive(Debug)]
pub struct Conversation {
    /// Where it comes from, for the report.
    pub origin: Origin,
    /// The rooms.
    pub rooms: Vec<Room>,
    /// Everybody who says something.
    pub people: Vec<Person>,
    /// What is said, in the order of [`Line::at`].
    pub lines: Vec<Line>,
}

/// Where a conversation comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Recorded, read from this file.
    File(String),
    /// Made up, from this seed.
    Seed(u64),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "recorded conversation {path}"),
            Self::Seed(seed) => write!(f, "made-up conversation, seed {seed}"),
        }
    }
}

/// A room: one channel.
#[derive(Debug)]
pub struct Room {
    /// Its name, the part of the channel after the namespace.
    pub name: String,
    /// Numbers of the people in it.
    pub members: Vec<usize>,
}

/// Somebody who says something.
#[derive(Debug)]
pub struct Person {
    /// The user.
    pub name: String,
    /// Numbers of the rooms they are in.
    pub rooms: Vec<usize>,
    /// Numbers of the lines they say, in order.
    pub lines: Vec<usize>,
}

/// Something said.
#[derive(Debug)]
pub struct Line {
    /// Number of the room.
    pub room: usize,
    /// Number of the person.
    pub author: usize,
    /// When, counted from the beginning, at the conversation's own speed.
    pub at: Duration,
    /// The publication's data: `{"n":<line number>,"text":"…"}`.
    pub data: String,
}

/// How a made-up conversation looks.
#[derive(Debug, Clone)]
pub struct Shape {
    /// Decides everything.
    pub seed: u64,
    /// Rooms in it.
    pub rooms: usize,
    /// People in it, spread over the rooms; some are in two.
    pub people: usize,
    /// Messages in it.
    pub messages: usize,
}

impl Default for Shape {
    /// As large as the recorded conversation that the project is tried with.
    fn default() -> Self {
        Self {
            seed: 1,
            rooms: 4,
            people: 634,
            messages: 6_248,
        }
    }
}

#[derive(Deserialize)]
struct FileLine {
    room: String,
    at_ms: u64,
    user: String,
    text: String,
}

impl Conversation {
    /// Reads a file of one JSON object a line: `room`, `at_ms`, `user`, `text`.
    ///
    /// With a `limit` only the earliest lines are taken, over all rooms.
    ///
    /// # Errors
    /// When the file cannot be read, or a line is not such an object.
    pub fn read(path: &Path, limit: Option<usize>) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let lines = text
            .lines()
            .enumerate()
            .map(|(index, line)| {
                serde_json::from_str(line)
                    .with_context(|| format!("{}, line {}", path.display(), index + 1))
            })
            .collect::<anyhow::Result<Vec<FileLine>>>()?;
        let origin = Origin::File(path.display().to_string());
        Self::assemble(origin, lines, limit)
    }

    /// Makes a conversation: the same seed gives the same one.
    ///
    /// # Errors
    /// When the shape has nobody or nothing in it.
    pub fn generate(shape: &Shape, limit: Option<usize>) -> anyhow::Result<Self> {
        anyhow::ensure!(
            shape.rooms > 0 && shape.people > 0 && shape.messages > 0,
            "a conversation needs a room, a person and a message"
        );
        let mut rng = StdRng::seed_from_u64(shape.seed);
        let mut at_ms = 0;
        let mut lines = Vec::with_capacity(shape.messages);
        for number in 0..shape.messages {
            at_ms += rng.random_range(200..2_600);
            // Everybody speaks once; then few speak much, as in real rooms.
            let person = if number < shape.people {
                number
            } else {
                let share: f64 = rng.random();
                scale(share * share, shape.people)
            };
            // Every fortieth person is in two rooms.
            let is_guest = person % 40 == 0 && rng.random_bool(0.3);
            lines.push(FileLine {
                room: format!("room-{}", (person + usize::from(is_guest)) % shape.rooms),
                at_ms,
                user: format!("person-{person}"),
                text: sentence(&mut rng),
            });
        }
        Self::assemble(Origin::Seed(shape.seed), lines, limit)
    }

    fn assemble(
        origin: Origin,
        mut source: Vec<FileLine>,
        limit: Option<usize>,
    ) -> anyhow::Result<Self> {
        // Stable: lines of one moment keep the file's order.
        source.sort_by_key(|line| line.at_ms);
        source.truncate(limit.unwrap_or(usize::MAX));
        anyhow::ensure!(!source.is_empty(), "the conversation is empty");

        let mut conversation = Self {
            origin,
            rooms: Vec::new(),
            people: Vec::new(),
            lines: Vec::with_capacity(source.len()),
        };
        let mut rooms = HashMap::new();
        let mut people = HashMap::new();
        for (index, line) in source.into_iter().enumerate() {
            let room = *rooms.entry(line.room).or_insert_with_key(|name| {
                conversation.rooms.push(Room {
                    name: name.clone(),
                    members: Vec::new(),
                });
                conversation.rooms.len() - 1
            });
            let author = *people.entry(line.user).or_insert_with_key(|name| {
                conversation.people.push(Person {
                    name: name.clone(),
                    rooms: Vec::new(),
                    lines: Vec::new(),
                });
                conversation.people.len() - 1
            });
            conversation.say(room, author, index, line.at_ms, &line.text)?;
        }
        Ok(conversation)
    }

    fn say(
        &mut self,
        room: usize,
        author: usize,
        index: usize,
        at_ms: u64,
        text: &str,
    ) -> anyhow::Result<()> {
        let person = &mut self.people[author];
        if !person.rooms.contains(&room) {
            person.rooms.push(room);
            self.rooms[room].members.push(author);
        }
        person.lines.push(index);
        self.lines.push(Line {
            room,
            author,
            at: Duration::from_millis(at_ms),
            data: format!(
                "{{\"n\":{},\"text\":{}}}",
                index + 1,
                serde_json::to_string(text)?
            ),
        });
        Ok(())
    }

    /// Deliveries of a replay in which nothing is lost.
    pub fn deliveries(&self) -> usize {
        self.lines
            .iter()
            .map(|line| self.rooms[line.room].members.len())
            .sum()
    }
}

fn sentence(rng: &mut StdRng) -> String {
    const WORDS: &[&str] = &[
        "the",
        "kernel",
        "boots",
        "now",
        "but",
        "why",
        "does",
        "wifi",
        "fail",
        "after",
        "update",
        "try",
        "\"sudo\"",
        "naïve",
        "schön",
        "日本",
        "🙂",
        "a\\b",
        "tab\there",
        "thanks",
    ];
    let words = rng.random_range(3..20);
    (0..words)
        .map(|_| WORDS[rng.random_range(0..WORDS.len())])
        .collect::<Vec<_>>()
        .join(" ")
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a share of a small count stays in its range"
)]
fn scale(share: f64, count: usize) -> usize {
    ((share * count as f64) as usize).min(count - 1)
}

/// Reads the line's number back from a publication's data.
pub(crate) fn number_of(data: &str) -> Option<usize> {
    let digits = data.strip_prefix("{\"n\":")?.split(',').next()?;
    digits.parse::<usize>().ok()?.checked_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_one_conversation_with_everybody_in_it() {
        let shape = Shape::default();
        let first = Conversation::generate(&shape, None).unwrap();
        let second = Conversation::generate(&shape, None).unwrap();
        assert_eq!(first.people.len(), shape.people);
        assert_eq!(first.rooms.len(), shape.rooms);
        assert!(first.people.iter().any(|person| person.rooms.len() > 1));
        let texts = |conversation: &Conversation| -> Vec<String> {
            conversation
                .lines
                .iter()
                .map(|line| line.data.clone())
                .collect()
        };
        assert_eq!(texts(&first), texts(&second));
        for (index, line) in first.lines.iter().enumerate() {
            assert_eq!(number_of(&line.data), Some(index));
            serde_json::from_str::<serde_json::Value>(&line.data).unwrap();
        }
    }

    #[test]
    fn a_limit_takes_the_earliest_lines_of_all_rooms() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let lines = [("a", 0), ("a", 9), ("b", 1), ("b", 2)].map(|(room, at)| {
            format!(r#"{{"room":"{room}","at_ms":{at},"user":"u","text":"{room}{at}"}}"#)
        });
        std::fs::write(file.path(), lines.join("\n")).unwrap();
        let conversation = Conversation::read(file.path(), Some(3)).unwrap();
        assert_eq!(conversation.rooms.len(), 2);
        assert_eq!(conversation.lines[2].data, r#"{"n":3,"text":"b2"}"#);
        assert_eq!(conversation.deliveries(), 3);
        assert!(Conversation::read(Path::new("/nowhere"), None).is_err());
    }
}

//! Reading answers: what a script returned, as the types it stands for.

use bytes::Bytes;
use redis::Value;

use crate::broker::BrokerError;

/// Walks through an array answer.
pub(crate) struct Fields(std::vec::IntoIter<Value>);

impl Fields {
    pub(crate) fn of(answer: Value) -> Result<Self, BrokerError> {
        match answer {
            Value::Array(values) => Ok(Self(values.into_iter())),
            other => Err(unexpected(&other)),
        }
    }

    pub(crate) fn value(&mut self) -> Result<Value, BrokerError> {
        self.0
            .next()
            .ok_or_else(|| BrokerError::Corrupt("a short answer of Redis".to_owned()))
    }

    pub(crate) fn bytes(&mut self) -> Result<Bytes, BrokerError> {
        bytes(self.value()?)
    }

    pub(crate) fn text(&mut self) -> Result<String, BrokerError> {
        text(self.value()?)
    }

    pub(crate) fn number(&mut self) -> Result<u64, BrokerError> {
        number(self.value()?)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.as_slice().is_empty()
    }

    pub(crate) fn rest(self) -> std::vec::IntoIter<Value> {
        self.0
    }
}

pub(crate) fn bytes(value: Value) -> Result<Bytes, BrokerError> {
    match value {
        Value::BulkString(bytes) => Ok(bytes.into()),
        Value::SimpleString(text) => Ok(text.into()),
        other => Err(unexpected(&other)),
    }
}

pub(crate) fn text(value: Value) -> Result<String, BrokerError> {
    let bytes = bytes(value)?;
    String::from_utf8(bytes.into())
        .map_err(|_| BrokerError::Corrupt("Redis answered no text".to_owned()))
}

pub(crate) fn number(value: Value) -> Result<u64, BrokerError> {
    let number = match value {
        Value::Int(number) => u64::try_from(number).ok(),
        other => text(other)?.parse().ok(),
    };
    number.ok_or_else(|| BrokerError::Corrupt("Redis answered no number".to_owned()))
}

pub(crate) fn unexpected(value: &Value) -> BrokerError {
    // The shape, never the content: it may be a payload.
    let shape = match value {
        Value::Nil => "nothing",
        Value::Int(_) => "a number",
        Value::BulkString(_) | Value::SimpleString(_) | Value::Okay => "a string",
        Value::Array(_) => "an array",
        _ => "another type",
    };
    BrokerError::Corrupt(format!(
        "Redis answered {shape} where something else must be"
    ))
}

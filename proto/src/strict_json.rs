//! A first pass over JSON from the network: refuses repeated keys, deep nesting and huge objects, which the
//! typed second pass would let through where it skips a member that it does not know.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// Deepest nesting accepted. An event needs 5.
const MAX_DEPTH: u8 = 32;

/// Most members of one object. An event's largest has 7; the bound keeps the search for repeats linear.
const MAX_MEMBERS: usize = 64;

/// Parses `json` as `T` after checking its structure.
pub(crate) fn from_slice<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, serde_json::Error> {
    let mut structure = serde_json::Deserializer::from_slice(json);
    Structure { depth: 0 }.deserialize(&mut structure)?;
    structure.end()?;
    serde_json::from_slice(json)
}

#[derive(Clone, Copy)]
struct Structure {
    depth: u8,
}

impl Structure {
    fn deeper<E: Error>(self) -> Result<Self, E> {
        if self.depth == MAX_DEPTH {
            return Err(E::custom("nested deeper than 32"));
        }
        Ok(Self { depth: self.depth + 1 })
    }
}

impl<'de> DeserializeSeed<'de> for Structure {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Structure {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let inner = self.deeper()?;
        while items.next_element_seed(inner)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let inner = self.deeper()?;
        let mut seen: Vec<Key<'de>> = Vec::new();
        while let Some(key) = members.next_key::<Key<'de>>()? {
            if seen.contains(&key) {
                return Err(A::Error::custom("repeated key"));
            }
            if seen.len() == MAX_MEMBERS {
                return Err(A::Error::custom("object with more than 64 members"));
            }
            seen.push(key);
            members.next_value_seed(inner)?;
        }
        Ok(())
    }
}

/// A key, borrowed from the input unless it holds escapes.
#[derive(PartialEq)]
struct Key<'de>(Cow<'de, str>);

impl<'de> Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeyVisitor;
        impl<'de> Visitor<'de> for KeyVisitor {
            type Value = Key<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }

            fn visit_borrowed_str<E>(self, key: &'de str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Borrowed(key)))
            }

            fn visit_str<E>(self, key: &str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Owned(key.to_owned())))
            }
        }
        deserializer.deserialize_str(KeyVisitor)
    }
}

#[cfg(test)]
mod tests {
    use serde::de::IgnoredAny;

    use super::*;

    fn accepts(json: &str) -> bool {
        from_slice::<IgnoredAny>(json.as_bytes()).is_ok()
    }

    #[test]
    fn repeated_keys_are_refused_at_any_depth_and_in_any_spelling() {
        assert!(accepts(r#"{"a":1,"b":{"a":2}}"#));
        assert!(!accepts(r#"{"a":1,"a":1}"#));
        assert!(!accepts(r#"{"x":[{"a":1,"\u0061":2}]}"#));
    }

    #[test]
    fn depth_members_and_trailing_bytes_are_bounded() {
        let nested = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        assert!(accepts(&nested(32)));
        assert!(!accepts(&nested(33)));
        let members = |n: usize| format!("{{{}}}", (0..n).map(|i| format!("\"k{i}\":0")).collect::<Vec<_>>().join(","));
        assert!(accepts(&members(64)));
        assert!(!accepts(&members(65)));
        assert!(!accepts("{} x"));
    }
}

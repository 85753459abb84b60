//! Bytes of one protobuf message go in, its fields come out one after the other. It allocates nothing, knows no
//! schema, and refuses what real parsers read differently from one another (groups, over-long tags).

/// One field of a message.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Value<'a> {
    /// Wire type 0.
    Varint(u64),
    /// Wire types 1 and 5; no check needs what they hold.
    Fixed,
    /// Wire type 2: a string, bytes, a message or packed numbers.
    Bytes(&'a [u8]),
}

/// The fields of one message in the order in which they are written.
#[derive(Debug, Clone)]
pub(super) struct Fields<'a>(&'a [u8]);

/// Bytes that are no protobuf message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

impl<'a> Fields<'a> {
    pub(super) fn of(message: &'a [u8]) -> Self {
        Self(message)
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first().ok_or(Malformed)?;
            self.0 = rest;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(Malformed);
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed)
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], Malformed> {
        let length = usize::try_from(length).map_err(|_| Malformed)?;
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(bytes)
    }

    fn field(&mut self) -> Result<(u32, Value<'a>), Malformed> {
        let before = self.0.len();
        let tag = self.varint()?;
        // Some parsers cut a longer tag to 32 bits and would see another field than this reader.
        let tag = u32::try_from(tag).map_err(|_| Malformed)?;
        if before - self.0.len() > 5 || tag >> 3 == 0 {
            return Err(Malformed);
        }
        let value = match tag & 7 {
            0 => Value::Varint(self.varint()?),
            1 => self.take(8).map(|_| Value::Fixed)?,
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Value::Fixed)?,
            _ => return Err(Malformed),
        };
        Ok((tag >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Value<'a>), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(message: &[u8], want: &[Result<(u32, Value<'_>), Malformed>]) {
        assert_eq!(Fields::of(message).collect::<Vec<_>>(), want, "{message:x?}");
    }

    #[test]
    fn fields_come_out_in_order() {
        check(&[], &[]);
        check(&[0x08, 0x96, 0x01], &[Ok((1, Value::Varint(150)))]);
        check(&[0x12, 2, b'h', b'i', 0x08, 1], &[Ok((2, Value::Bytes(b"hi"))), Ok((1, Value::Varint(1)))]);
        check(&[0x0d, 1, 2, 3, 4], &[Ok((1, Value::Fixed))]);
    }

    #[test]
    fn what_parsers_disagree_on_is_refused() {
        for message in [
            &[0x08][..],                                                      // cut
            &[0x12, 3, 1],                                                    // longer than the message
            &[0x0b, 0x0c],                                                    // groups
            &[0x00, 0x00],                                                    // field 0
            &[0x88, 0x80, 0x80, 0x80, 0x80, 0x00, 0x01],                      // a tag of six bytes
            &[0x88, 0x80, 0x80, 0x80, 0x10, 0x01],                            // a tag of more than 32 bits
            &[0x08, 255, 255, 255, 255, 255, 255, 255, 255, 255, 2],          // more than 64 bits
            &[0x12, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1, 0, 0, 0], // length near 2^64
        ] {
            check(message, &[Err(Malformed)]);
        }
    }
}

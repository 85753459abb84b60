//! Buffers of f32 that begin at a cache line, so that a vector never lies across two. A length comes in, a slice goes out.
//! Never grows by itself in the middle of an op.

/// Bytes of a cache line.
pub(super) const LINE: usize = 64;

/// f32 elements, the first at the start of a cache line.
#[derive(Debug, Default)]
pub struct Aligned {
    /// The elements, and before them as many as it takes to begin at a line.
    buffer: Vec<f32>,
    start: usize,
    len: usize,
}

impl Aligned {
    /// `len` zeros, which take no memory until they are touched.
    pub fn zeros(len: usize) -> Self {
        let buffer = vec![0.0_f32; len + LINE / size_of::<f32>() - 1];
        let start = buffer.as_ptr().align_offset(LINE);
        Self { buffer, start, len }
    }

    /// The first `len` elements, whatever they hold; takes more memory where there is too little.
    pub fn at_least(&mut self, len: usize) -> &mut [f32] {
        if self.len < len {
            // Made anew and not grown: nothing of the old content is wanted, so nothing is copied.
            *self = Self::default();
            *self = Self::zeros(len);
        }
        &mut self[..len]
    }

    /// The same memory as words of 32 bits.
    pub(crate) fn words(&self) -> &[u32] {
        // SAFETY: an f32 is as long and as aligned as a word, of which any bits are one.
        unsafe { std::slice::from_raw_parts(self.as_ptr().cast(), self.len) }
    }

    /// The same memory as words of 32 bits.
    pub(crate) fn words_mut(&mut self) -> &mut [u32] {
        // SAFETY: as above; any word is an f32, and `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr().cast(), self.len) }
    }

    /// The same memory as bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: f32 has no padding, and any byte may be read as u8.
        unsafe { std::slice::from_raw_parts(self.as_ptr().cast(), size_of_val(&self[..])) }
    }

    /// The same memory as bytes.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; any four bytes are an f32, and `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr().cast(), size_of_val(&self[..])) }
    }
}

impl Clone for Aligned {
    /// A copy may have to begin elsewhere in its buffer.
    fn clone(&self) -> Self {
        let mut copy = Self::zeros(self.len);
        copy.copy_from_slice(self);
        copy
    }
}

impl std::ops::Deref for Aligned {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.buffer[self.start..self.start + self.len]
    }
}

impl std::ops::DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.buffer[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_begin_at_a_cache_line_and_are_as_long_as_asked() {
        for len in [0, 1, 15, 16, 17, 1000] {
            let mut buffer = Aligned::zeros(len);
            assert_eq!((buffer.len(), buffer.as_ptr() as usize % 64), (len, 0));
            buffer.iter_mut().for_each(|x| *x += 1.0);
            assert!(buffer.iter().all(|x| *x == 1.0));
            let copy = buffer.clone();
            assert_eq!((&*copy, copy.as_ptr() as usize % 64), (&*buffer, 0));
        }
    }

    #[test]
    fn a_buffer_takes_more_memory_only_when_it_must() {
        let mut buffer = Aligned::zeros(64);
        buffer[3] = 7.0;
        assert_eq!(buffer.at_least(10).len(), 10);
        assert_eq!(buffer[3], 7.0);
        assert_eq!(buffer.at_least(65).len(), 65);
    }
}

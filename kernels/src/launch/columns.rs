//! A matrix that several threads write, each its own rectangle. A row-major slice comes in, rectangles that share no element
//! go out. Never two of them over the same element: they are made by splitting only.

use std::marker::PhantomData;

/// A rectangle of a row-major f32 matrix, which is the only way to its elements.
#[derive(Debug)]
pub struct Columns<'a> {
    first: *mut f32,
    rows: usize,
    width: usize,
    stride: usize,
    matrix: PhantomData<&'a mut [f32]>,
}

// SAFETY: it is a `&mut` to elements that nothing else reaches, and f32 can be sent.
unsafe impl Send for Columns<'_> {}

impl<'a> Columns<'a> {
    /// A whole matrix `[rows, width]`.
    ///
    /// # Panics
    /// When the slice is not whole rows.
    pub fn whole(matrix: &'a mut [f32], width: usize) -> Self {
        assert!(width > 0 && matrix.len().is_multiple_of(width), "{} elements in rows of {width}", matrix.len());
        let rows = matrix.len() / width;
        Self { first: matrix.as_mut_ptr(), rows, width, stride: width, matrix: PhantomData }
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Elements of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The first `column` columns, and the others.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn split_columns(self, column: usize) -> (Self, Self) {
        assert!(column <= self.width, "column {column} of {}", self.width);
        // Nothing of an empty rectangle is reached, so where it begins says nothing.
        let second = self.first.wrapping_add(column);
        (Self { width: column, ..self }, Self { first: second, width: self.width - column, ..self })
    }

    /// The first `row` rows, and the others.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn split_rows(self, row: usize) -> (Self, Self) {
        assert!(row <= self.rows, "row {row} of {}", self.rows);
        let second = self.first.wrapping_add(row * self.stride);
        (Self { rows: row, ..self }, Self { first: second, rows: self.rows - row, ..self })
    }

    /// One row.
    ///
    /// # Panics
    /// When there is none of this number.
    pub fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        // SAFETY: the rectangle's rows lie inside the slice that it was made of, and `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(row * self.stride), self.width) }
    }

    /// Where the first element lies, and how many elements a row is behind the one before it.
    pub(crate) fn raw(&mut self) -> (*mut f32, usize) {
        (self.first, self.stride)
    }

    /// The same rectangle for a shorter time.
    pub fn reborrow(&mut self) -> Columns<'_> {
        Columns { matrix: PhantomData, ..*self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_is_in_exactly_one_rectangle() {
        let mut matrix = vec![0.0; 5 * 7];
        let (left, right) = Columns::whole(&mut matrix, 7).split_columns(3);
        let ((above, below), (none, all)) = (left.split_rows(2), right.split_rows(0));
        let parts = [(above, 1.0), (below, 2.0), (none, 3.0), (all, 4.0)];
        std::thread::scope(|scope| {
            for (mut part, value) in parts {
                scope.spawn(move || (0..part.rows()).for_each(|r| part.row(r).iter_mut().for_each(|x| *x += value)));
            }
        });
        for (row, values) in matrix.chunks(7).enumerate() {
            let left = if row < 2 { 1.0 } else { 2.0 };
            assert_eq!(values, [left, left, left, 4.0, 4.0, 4.0, 4.0]);
        }
    }

    #[test]
    #[should_panic(expected = "column 8 of 7")]
    fn a_column_that_is_not_there_is_refused() {
        let _ = Columns::whole(&mut [0.0; 14], 7).split_columns(8);
    }
}

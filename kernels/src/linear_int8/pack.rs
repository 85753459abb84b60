//! Rows and weights in 8 bits, as the innermost loop reads them. f32 (or what a checkpoint stores) come in, whole numbers with
//! their scales go out. Never a product.

use std::ops::Deref;

use super::{Error, simd};
use crate::launch::aligned::Aligned;
use crate::launch::panels::Shape;
use crate::launch::{self, Isa, dots};
use crate::linear::{pack, rows};
use crate::stored::Values;

/// So many products of 255 and 127 add up to less than 2³¹.
pub(super) const INPUTS_MAX: usize = 65_536;

/// The greatest magnitude of a weight.
const WEIGHT_MAX: f32 = 127.0;

/// Weights `[n, k]` in 8 bits with a scale for each output, packed for an instruction set.
#[derive(Debug)]
pub struct Quantized {
    shape: Shape,
    /// Panels of i8 `[panels, groups, width, group]`.
    panels: Aligned,
    /// `s_j`; zeros behind the last output, up to whole panels.
    pub(super) scales: Vec<f32>,
    /// `Σ_p v_jp`; zeros as above.
    pub(super) totals: Vec<i32>,
}

impl Deref for Quantized {
    type Target = Shape;

    fn deref(&self) -> &Shape {
        &self.shape
    }
}

impl Quantized {
    /// Puts weights `[n, k]` into 8 bits for the instruction set that ops use now. Several parts of one `k` become one layer whose
    /// outputs lie side by side.
    ///
    /// # Errors
    /// [`Error::Weights`] when a part is not whole rows, [`Error::Empty`] when there is no element, [`Error::Inputs`] when a sum
    /// could leave 32 bits, [`Error::NotFinite`] when a weight is no number.
    pub fn new(parts: &[Values<'_>], inputs: usize) -> Result<Self, Error> {
        Self::new_on(launch::isa(), parts, inputs)
    }

    pub(crate) fn new_on(isa: Isa, parts: &[Values<'_>], inputs: usize) -> Result<Self, Error> {
        let shape = pack::shape(isa, parts, inputs)?;
        if inputs > INPUTS_MAX {
            return Err(Error::Inputs { inputs, most: INPUTS_MAX });
        }
        let (width, group) = (shape.width(), dots::group(isa));
        let padded = shape.panels() * width;
        let panel = inputs.next_multiple_of(dots::inputs_at_once(isa)) * width;
        let mut panels = Aligned::zeros((shape.panels() * panel).div_ceil(size_of::<f32>()));
        let (mut scales, mut totals) = (vec![0.0; padded], vec![0; padded]);
        let whole = panels.bytes_mut();
        let mut row = vec![0.0; inputs];
        for (output, (part, index)) in pack::rows(parts, inputs).enumerate() {
            row.iter_mut().enumerate().for_each(|(p, w)| *w = part.get(index * inputs + p));
            if row.iter().any(|w| !w.is_finite()) {
                return Err(Error::NotFinite { output });
            }
            // Weights so small that their scale has no inverse are as good as none.
            let scale = row.iter().fold(0.0_f32, |most, w| most.max(w.abs())) / WEIGHT_MAX;
            let inverse = if scale >= f32::MIN_POSITIVE { scale.recip() } else { 0.0 };
            scales[output] = scale;
            let to = &mut whole[output / width * panel..][..panel];
            for (p, w) in row.iter().enumerate() {
                // Within −127 to 127, so the conversion cuts nothing off.
                let weight = (w * inverse).round_ties_even() as i8;
                totals[output] += i32::from(weight);
                to[(p / group * width + output % width) * group + p % group] = weight.cast_unsigned();
            }
        }
        Ok(Self { shape, panels, scales, totals })
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.panels[..]) + size_of_val(&self.scales[..]) + size_of_val(&self.totals[..])
    }

    /// One panel: `[groups, width, group]`.
    pub(super) fn panel(&self, panel: usize) -> &[u8] {
        let len = self.groups() * dots::group(self.isa()) * self.width();
        &self.panels.bytes()[panel * len..(panel + 1) * len]
    }

    /// Groups of a row, and of the zeros behind it.
    pub(super) fn groups(&self) -> usize {
        self.inputs().next_multiple_of(dots::inputs_at_once(self.isa())) / dots::group(self.isa())
    }

    /// `v_jp`
    pub(super) fn get(&self, j: usize, p: usize) -> i8 {
        let (width, group) = (self.width(), dots::group(self.isa()));
        self.panel(j / width)[(p / group * width + j % width) * group + p % group].cast_signed()
    }
}

/// Rows in 8 bits, each with its scale and its zero. The memory is kept for the next ones.
#[derive(Debug, Default)]
pub struct Rows {
    /// Inputs, and the instruction set they are for; of no use while there is none.
    of: Option<(usize, Isa)>,
    /// `q`, in groups, as the instruction set takes them: `[rows, groups]`.
    pub(super) words: Vec<u32>,
    /// `s`
    pub(super) scales: Vec<f32>,
    /// `z`, less what was taken from every element.
    pub(super) zeros: Vec<i32>,
    /// One row of whole numbers.
    pub(super) whole: Aligned,
}

impl Rows {
    /// Puts rows `x: [m, k]` into 8 bits, for weights of as many inputs. What it held before is gone.
    ///
    /// # Errors
    /// [`Error::Input`], when `x` is not whole rows.
    pub fn quantize(&mut self, x: &[f32], weights: &Quantized) -> Result<(), Error> {
        let count = rows(x, weights)?;
        self.of = Some((weights.inputs(), weights.isa()));
        self.words.resize(count * weights.groups(), 0);
        self.scales.resize(count, 0.0);
        self.zeros.resize(count, 0);
        simd::quantize(x, weights, self);
        Ok(())
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.scales.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.scales.is_empty()
    }

    pub(super) fn inputs(&self) -> usize {
        self.of.map_or(0, |(inputs, _)| inputs)
    }

    pub(super) fn isa(&self) -> Isa {
        self.of.map_or(Isa::Scalar, |(_, isa)| isa)
    }

    /// `q_p − z` of a row.
    pub(super) fn get(&self, row: usize, p: usize) -> i32 {
        let group = dots::group(self.isa());
        let words = self.words.len() / self.len();
        let word = self.words[row * words + p / group];
        let element = match group {
            2 => i32::from((word >> (16 * (p % group))) as i16),
            _ if self.isa() == Isa::NeonDotprod => i32::from((word >> (8 * (p % group))) as i8),
            _ => i32::from((word >> (8 * (p % group))) as u8),
        };
        element - self.zeros[row]
    }
}

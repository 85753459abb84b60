//! How near a model's results are to those of the same model in another form: two loaded models and texts come in, figures go
//! out. For deciding whether a form in fewer bits is good enough. Never a threshold: what is good enough is the owner's to say.

use crate::engine::{self, Output};
use crate::load::Loaded;
use crate::manifest::Task;
use crate::task::{self, Request, Text};

/// Texts of everyday kinds, for who has none at hand: 64 sentences of 7 to 22 words.
pub fn sample_texts() -> Vec<String> {
    include_str!("texts.txt").lines().map(str::to_owned).collect()
}

/// How near they are.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
#[serde(tag = "of", rename_all = "lowercase")]
pub enum Accuracy {
    /// Of embeddings.
    Embeddings {
        /// Mean cosine of a text's two vectors.
        cosine_mean: f64,
        /// The least.
        cosine_least: f64,
        /// Spearman's correlation of the similarities of all pairs of texts: whether what is near stays near.
        rank_correlation: f64,
    },
    /// Of a classifier's or a reranker's scores, before the softmax or the sigmoid.
    Scores {
        /// Mean difference of a score.
        difference_mean: f64,
        /// The greatest.
        difference_most: f64,
        /// Spearman's correlation of the scores over all texts, the mean over the classes.
        rank_correlation: f64,
        /// The share of texts whose greatest score is the same class's; nothing where there is one score, as of a reranker.
        #[serde(skip_serializing_if = "Option::is_none")]
        same_class: Option<f64>,
    },
}

/// Why nothing was measured.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// Ranks need some.
    #[error("{0} texts are too few to compare; give at least 3, one a line")]
    TooFew(usize),
    /// The model does not take text.
    #[error("{0} does not take text; only models that do are compared")]
    NotText(String),
    /// The model refuses a text.
    #[error(transparent)]
    Task(#[from] task::Error),
    /// The model failed.
    #[error(transparent)]
    Engine(#[from] engine::Error),
}

/// Texts that go through a model together.
const BATCH: usize = 32;

/// Puts the same texts through two models. A reranker scores all but the first against the first.
///
/// # Errors
/// When a model refuses a text or fails, or there are fewer than three texts.
pub fn measure(reference: &mut Loaded, other: &mut Loaded, texts: &[String]) -> Result<Accuracy, Error> {
    if texts.len() < 3 {
        return Err(Error::TooFew(texts.len()));
    }
    let (expected, found) = (vectors(reference, texts)?, vectors(other, texts)?);
    Ok(match reference.manifest.task {
        Task::Embed => embeddings(&expected, &found),
        _ => scores(&expected, &found),
    })
}

fn vectors(model: &mut Loaded, texts: &[String]) -> Result<Vec<Vec<f32>>, Error> {
    let inputs = || texts.iter().cloned().map(Text::Words).collect();
    let truncate = true;
    let request = match model.manifest.task {
        Task::Embed => Request::Embed { inputs: inputs(), prompt: None, dimensions: None, normalize: None, truncate },
        Task::Classify if model.pipeline.takes_text() => {
            Request::ClassifyTexts { inputs: inputs(), top_n: None, truncate }
        }
        Task::Rerank => {
            Request::Rerank { query: texts[0].clone(), documents: texts[1..].to_vec(), top_n: None, truncate }
        }
        Task::Classify | Task::Infer | Task::Generate => return Err(Error::NotText(model.manifest.id())),
    };
    let items = model.pipeline.prepare(request)?.items;
    let mut vectors = Vec::with_capacity(items.len());
    for items in items.chunks(BATCH) {
        for output in model.engine.run(items)? {
            match output {
                Output::Vector(vector) => vectors.push(vector),
                Output::Tensors(_) => return Err(Error::NotText(model.manifest.id())),
            }
        }
    }
    Ok(vectors)
}

fn embeddings(expected: &[Vec<f32>], found: &[Vec<f32>]) -> Accuracy {
    let cosines: Vec<f64> = expected.iter().zip(found).map(|(a, b)| cosine(a, b)).collect();
    let similarities = |vectors: &[Vec<f32>]| -> Vec<f64> {
        let pairs = (0..vectors.len()).flat_map(|a| (0..a).map(move |b| (a, b)));
        pairs.map(|(a, b)| cosine(&vectors[a], &vectors[b])).collect()
    };
    Accuracy::Embeddings {
        cosine_mean: mean(&cosines),
        cosine_least: cosines.iter().copied().fold(1.0, f64::min),
        rank_correlation: spearman(&similarities(expected), &similarities(found)),
    }
}

fn scores(expected: &[Vec<f32>], found: &[Vec<f32>]) -> Accuracy {
    let pairs = || expected.iter().flatten().zip(found.iter().flatten());
    let differences: Vec<f64> = pairs().map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs()).collect();
    let classes = expected.first().map_or(0, Vec::len);
    let of_class = |scores: &[Vec<f32>], class: usize| -> Vec<f64> {
        scores.iter().map(|scores| f64::from(scores[class])).collect()
    };
    let correlations: Vec<f64> =
        (0..classes).map(|class| spearman(&of_class(expected, class), &of_class(found, class))).collect();
    let best = |scores: &Vec<f32>| scores.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(class, _)| class);
    let same = expected.iter().zip(found).filter(|(a, b)| best(a) == best(b)).count();
    Accuracy::Scores {
        difference_mean: mean(&differences),
        difference_most: differences.iter().copied().fold(0.0, f64::max),
        rank_correlation: mean(&correlations),
        same_class: (classes > 1).then(|| same as f64 / expected.len() as f64),
    }
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum() };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Pearson's correlation of the ranks; equal values share the mean of their ranks. 1 where one side does not vary and the other
/// does not either.
fn spearman(a: &[f64], b: &[f64]) -> f64 {
    let (a, b) = (ranks(a), ranks(b));
    let (mean_a, mean_b) = (mean(&a), mean(&b));
    let sum = |f: &dyn Fn(f64, f64) -> f64| a.iter().zip(&b).map(|(a, b)| f(a - mean_a, b - mean_b)).sum::<f64>();
    let (together, of_a, of_b) = (sum(&|a, b| a * b), sum(&|a, _| a * a), sum(&|_, b| b * b));
    if of_a == 0.0 && of_b == 0.0 { 1.0 } else { together / (of_a * of_b).sqrt() }
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0.0; values.len()];
    let mut first = 0;
    for equal in order.chunk_by(|a, b| values[*a] == values[*b]) {
        equal.iter().for_each(|index| ranks[*index] = first as f64 + (equal.len() - 1) as f64 / 2.0);
        first += equal.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_correlated_and_not_values() {
        assert_eq!(spearman(&[1.0, 2.0, 3.0, 4.0], &[1.0, 10.0, 100.0, 1000.0]), 1.0);
        assert_eq!(spearman(&[1.0, 2.0, 3.0], &[3.0, 2.0, 1.0]), -1.0);
        assert_eq!(spearman(&[5.0, 5.0], &[1.0, 1.0]), 1.0);
        // By hand: ranks 0, 1.5, 1.5, 3 and 0, 1, 2, 3; 4.5 / √(4.5 · 5).
        assert!((spearman(&[1.0, 2.0, 2.0, 3.0], &[1.0, 2.0, 3.0, 4.0]) - 4.5 / 22.5_f64.sqrt()).abs() < 1e-12);
    }

    #[test]
    fn what_is_the_same_is_perfect_and_what_is_not_is_less() {
        let vectors = vec![vec![1.0, 0.0], vec![0.6, 0.8], vec![0.0, 1.0]];
        let perfect = Accuracy::Embeddings { cosine_mean: 1.0, cosine_least: 1.0, rank_correlation: 1.0 };
        assert_eq!(embeddings(&vectors, &vectors), perfect);
        let other = vec![vec![1.0, 0.0], vec![0.6, 0.8], vec![1.0, 0.0]];
        let Accuracy::Embeddings { cosine_least, .. } = embeddings(&vectors, &other) else { panic!("not embeddings") };
        assert_eq!(cosine_least, 0.0);
        let Accuracy::Scores { difference_mean, difference_most, same_class, .. } = scores(&vectors, &other) else {
            panic!("not scores")
        };
        assert!((difference_mean - 2.0 / 6.0).abs() < 1e-7 && difference_most == 1.0);
        assert_eq!(same_class, Some(2.0 / 3.0));
        let one = |score| vec![vec![score]; 3];
        let Accuracy::Scores { same_class, .. } = scores(&one(1.0), &one(2.0)) else { panic!("not scores") };
        assert_eq!(same_class, None, "one score has no rival");
    }

    #[test]
    fn the_sample_is_as_described() {
        let texts = sample_texts();
        let words: Vec<usize> = texts.iter().map(|text| text.split_whitespace().count()).collect();
        assert_eq!((texts.len(), words.iter().min(), words.iter().max()), (64, Some(&7), Some(&22)));
    }
}

//! The bundled digits: written out, loaded on every backend, and asked about digits that training never saw.

use crate::support::{On, ask, assert_close, json, load_on, numbers};
use models::engine::{Error, Item, Output};
use models::task::{Reply, Request};
use models::{Loaded, NamedTensor, Tensor, bundled};

crate::on_every_backend!(
    held_out_digits_are_read,
    logits_are_those_of_the_reference,
    rows_of_different_callers_are_joined_and_come_back_apart,
    a_wrong_shape_is_the_callers_fault,
);

fn digits(on: On) -> Option<(Loaded, tempfile::TempDir)> {
    let folder = tempfile::tempdir().unwrap();
    let digits = bundled::all().iter().find(|bundled| bundled.name == "digits").unwrap();
    digits.write(folder.path()).unwrap();
    Some((load_on(on, &digits.manifest(), folder.path())?, folder))
}

fn pixels(rows: &[Vec<f64>]) -> Vec<NamedTensor> {
    let values: Vec<f32> = rows.iter().flatten().map(|v| *v as f32).collect();
    let tensor = Tensor::from_f32(vec![rows.len(), values.len() / rows.len()], &values).unwrap();
    vec![NamedTensor { name: "pixels".into(), tensor }]
}

fn held_out() -> (Vec<Vec<f64>>, serde_json::Value) {
    let held_out = json("digits_heldout.json");
    (held_out["pixels"].as_array().unwrap().iter().map(numbers).collect(), held_out)
}

fn held_out_digits_are_read(on: On) {
    let Some((mut model, _folder)) = digits(on) else { return };
    let (rows, held_out) = held_out();
    let request = Request::ClassifyTensors { inputs: pixels(&rows), top_n: Some(1) };
    let Reply::Labels(labels) = ask(&mut model, request).unwrap() else { panic!("not labels") };
    let truth = held_out["labels"].as_array().unwrap();
    let right = labels.iter().zip(truth).filter(|(label, truth)| label[0].label == truth.to_string()).count();
    assert!(labels.len() == truth.len() && right * 100 >= truth.len() * 97, "{right} of {}", truth.len());
}

fn logits_are_those_of_the_reference(on: On) {
    let Some((mut model, _folder)) = digits(on) else { return };
    let (rows, held_out) = held_out();
    let golden: Vec<f64> = held_out["golden_logits"].as_array().unwrap().iter().flat_map(numbers).collect();
    let inputs = pixels(&rows[..golden.len() / 10]);
    let request = Request::Infer { inputs, outputs: vec!["logits".into()] };
    let Reply::Tensors(tensors) = ask(&mut model, request).unwrap() else { panic!("not tensors") };
    let tensor = &tensors[0].tensor;
    assert_eq!((tensor.shape(), tensors.len()), (&[golden.len() / 10, 10][..], 1));
    assert_close(&tensor.to_f32().unwrap(), &golden, 1e-4, "logits");
}

fn rows_of_different_callers_are_joined_and_come_back_apart(on: On) {
    let Some((mut model, _folder)) = digits(on) else { return };
    assert!(model.engine.info().batches_rows);
    let (rows, _) = held_out();
    let parts = [&rows[..3], &rows[3..4], &rows[4..9]];
    let items: Vec<Item> = parts.iter().map(|part| Item::Tensors(pixels(part))).collect();
    let together = model.engine.run(&items).unwrap();
    for (item, together) in items.iter().zip(&together) {
        let alone = model.engine.run(std::slice::from_ref(item)).unwrap();
        let (Output::Tensors(alone), Output::Tensors(together)) = (&alone[0], together) else { panic!("no tensors") };
        assert_eq!(alone[0].tensor.shape(), together[0].tensor.shape());
        let want: Vec<f64> = alone[0].tensor.to_f32().unwrap().iter().map(|v| (*v).into()).collect();
        assert_close(&together[0].tensor.to_f32().unwrap(), &want, 1e-4, "rows");
    }
}

fn a_wrong_shape_is_the_callers_fault(on: On) {
    let Some((mut model, _folder)) = digits(on) else { return };
    let narrow = vec![vec![0.0; 63]];
    let request = Request::Infer { inputs: pixels(&narrow), outputs: vec![] };
    assert!(matches!(ask(&mut model, request), Err(models::task::Error::Shape { .. })));
    let straight = model.engine.run(&[Item::Tensors(pixels(&narrow))]);
    assert!(matches!(straight, Err(Error::Input(_))), "{straight:?}");
    assert!(model.engine.run(&[Item::Tensors(pixels(&[vec![0.0; 64]]))]).is_ok());
}

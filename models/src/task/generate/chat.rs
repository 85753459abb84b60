//! A conversation becomes a prompt by the template that a model carries. Messages go in as OpenAI has them, text comes out, in which
//! special tokens are written out.
//!
//! Templates are Jinja, written for Python's: its methods are there, `raise_exception` too. There is no clock, so that the same messages
//! give the same prompt at any time; templates that ask for a date have one of their own for that case.

use minijinja::value::{Kwargs, Value as Jinja, ValueKind};
use minijinja::{Environment, ErrorKind};
use serde_json::Value;

/// Steps that a template may take: a long conversation takes some thousand, one without an end takes all.
const FUEL: u64 = 1_000_000;

/// The name under which the one template of an environment is kept.
const NAME: &str = "chat";

/// A chat template that was read.
#[derive(Debug)]
pub struct Template {
    environment: Environment<'static>,
    source: String,
    /// `bos_token`, `eos_token` and the like, by name.
    specials: Vec<(String, String)>,
}

/// Why there is no prompt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The template itself is broken: the model's fault.
    #[error("the model's chat template cannot be read: {0}")]
    Template(String),
    /// The template refuses these messages: the caller's fault.
    #[error("the model's chat template refuses these messages: {0}")]
    Refused(String),
}

impl Template {
    /// Reads the template of a `tokenizer_config.json`, or one that stands in a file of its own. Nothing where there is neither.
    ///
    /// # Errors
    /// [`Error::Template`]
    pub fn read(config: &Value, file: Option<&str>) -> Result<Option<Self>, Error> {
        let named = |list: &Value| {
            let find = |name: &str| list.as_array()?.iter().find(|entry| entry["name"] == name)?["template"].as_str();
            find("default").map(str::to_owned)
        };
        let stated = &config["chat_template"];
        let Some(source) = file.or(stated.as_str()).map(str::to_owned).or_else(|| named(stated)) else {
            return Ok(None);
        };
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |words: String| -> Result<Jinja, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, words))
        });
        environment.add_filter("tojson", to_json);
        environment.add_template_owned(NAME, source.clone()).map_err(|e| Error::Template(words(&e)))?;
        let text = |value: &Value| value.as_str().or(value["content"].as_str()).map(str::to_owned);
        let specials = config.as_object().into_iter().flatten();
        let specials = specials.filter(|(name, _)| name.ends_with("_token"));
        let specials = specials.filter_map(|(name, value)| Some((name.clone(), text(value)?))).collect();
        Ok(Some(Self { environment, source, specials }))
    }

    /// Its text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The prompt that ends where the model is to answer. Messages and tools are JSON, whose keys keep their order: models were
    /// trained on tools in the order in which they were written.
    ///
    /// # Errors
    /// [`Error::Refused`], with the template's own words or those of the JSON's reader.
    pub fn prompt(&self, messages: &str, tools: Option<&str>) -> Result<String, Error> {
        let read = |json: &str| serde_json::from_str::<Jinja>(json).map_err(|e| Error::Refused(e.to_string()));
        let mut context: Vec<(&str, Jinja)> =
            self.specials.iter().map(|(name, token)| (name.as_str(), token.as_str().into())).collect();
        context.push(("messages", conversation(&read(messages)?)?));
        if let Some(tools) = tools {
            context.push(("tools", read(tools)?));
        }
        context.push(("add_generation_prompt", true.into()));
        let template = self.environment.get_template(NAME).map_err(|e| Error::Template(words(&e)))?;
        template.render(Jinja::from_iter(context)).map_err(|e| Error::Refused(words(&e)))
    }
}

/// The messages, each with its role, as most templates want them: contents in parts become one text, a line for each part, and the
/// arguments of calls, which OpenAI writes as text, become what that text says.
fn conversation(messages: &Jinja) -> Result<Jinja, Error> {
    if messages.kind() != ValueKind::Seq {
        return Err(Error::Refused("messages must be a list of objects with role and content".into()));
    }
    let message = |(index, message): (usize, Jinja)| {
        if message.kind() != ValueKind::Map || of(&message, "role").as_str().is_none() {
            return Err(Error::Refused(format!("message {index} is no object with a role")));
        }
        let content = joined(&of(&message, "content")).map_err(|part| {
            Error::Refused(format!("message {index}: part {part} of its content is no text; only text can be read"))
        })?;
        let message = content.map_or(message.clone(), |content| with(&message, "content", content));
        let calls = of(&message, "tool_calls");
        if calls.kind() != ValueKind::Seq {
            return Ok(message);
        }
        let calls: Vec<Jinja> = elements(&calls).map(|call| called(&call)).collect();
        Ok(with(&message, "tool_calls", calls.into()))
    };
    elements(messages).enumerate().map(message).collect::<Result<Vec<_>, _>>().map(Jinja::from)
}

/// The text of a content in parts, or which part is none. Nothing where it has no parts.
fn joined(content: &Jinja) -> Result<Option<Jinja>, usize> {
    if content.kind() != ValueKind::Seq {
        return Ok(None);
    }
    let line = |(index, part): (usize, Jinja)| of(&part, "text").as_str().map(str::to_owned).ok_or(index);
    let lines = elements(content).enumerate().map(line).collect::<Result<Vec<_>, _>>()?;
    Ok(Some(lines.join("\n").into()))
}

/// A call whose arguments are what their text says, where that is JSON.
fn called(call: &Jinja) -> Jinja {
    let function = of(call, "function");
    let arguments = of(&function, "arguments");
    match arguments.as_str().and_then(|text| serde_json::from_str::<Jinja>(text).ok()) {
        Some(arguments) => with(call, "function", with(&function, "arguments", arguments)),
        None => call.clone(),
    }
}

fn of(object: &Jinja, key: &str) -> Jinja {
    object.get_attr(key).unwrap_or_default()
}

fn elements(list: &Jinja) -> impl Iterator<Item = Jinja> {
    list.try_iter().into_iter().flatten()
}

/// An object with another value for one of its keys, which keep their order.
fn with(object: &Jinja, key: &str, value: Jinja) -> Jinja {
    let pair = |name: Jinja| {
        let value = if name.as_str() == Some(key) { value.clone() } else { of(object, name.as_str().unwrap_or("")) };
        (name, value)
    };
    Jinja::from_iter(elements(object).map(pair).collect::<Vec<_>>())
}

/// As Python writes JSON: a space behind colons and commas, nothing escaped for HTML; with `indent`, as many spaces a level.
fn to_json(value: &Jinja, options: Kwargs) -> Result<Jinja, minijinja::Error> {
    let failed = |e: String| minijinja::Error::new(ErrorKind::BadSerialization, e);
    let indent: Option<usize> = options.get("indent")?;
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let mut bytes = Vec::new();
    let result = match indent {
        Some(indent) => {
            let indent = " ".repeat(indent.min(16));
            let formatter = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
            serde::Serialize::serialize(value, &mut serde_json::Serializer::with_formatter(&mut bytes, formatter))
        }
        None => serde::Serialize::serialize(value, &mut serde_json::Serializer::with_formatter(&mut bytes, Spaced)),
    };
    result.map_err(|e| failed(e.to_string()))?;
    String::from_utf8(bytes).map(Jinja::from_safe_string).map_err(|e| failed(e.to_string()))
}

/// One line, with spaces.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

/// An error with what it came from, without the template's text.
fn words(error: &minijinja::Error) -> String {
    match error.detail() {
        Some(detail) => format!("{detail} (line {})", error.line().unwrap_or(0)),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn template(source: &str) -> Template {
        let config = json!({
            "chat_template": source, "bos_token": "<s>", "eos_token": {"content": "</s>", "special": true}, "model_max_length": 9,
        });
        Template::read(&config, None).unwrap().unwrap()
    }

    fn check(source: &str, messages: &str, tools: Option<&str>, want: &str) {
        assert_eq!(template(source).prompt(messages, tools).unwrap(), want, "{source}");
    }

    #[test]
    fn messages_become_a_prompt() {
        let messages = r#"[{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "Hi <b>"}]"#;
        let source = "{{ bos_token }}{% for message in messages %}\n  {% if message.role == 'system' %}\n[{{ message['content'].strip() }}]\n  \
            {% else %}\n{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}\n  {% endif %}\n{% endfor %}\n\
            {% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}";
        check(source, messages, None, "<s>[Be brief.]\n<|user|>Hi <b></s>\n<|assistant|>");
    }

    #[test]
    fn what_templates_for_python_use_is_there() {
        let messages = r#"[{"role": "user", "content": "a,b"}]"#;
        for (source, want) in [
            ("{{ messages[0].content.split(',')[-1].upper() }}", "B"),
            ("{{ messages | length }}{{ messages[-1]['role'] }}", "1user"),
            (
                "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
                "1",
            ),
            ("{% if tools is defined and tools %}t{% else %}none{% endif %}", "none"),
            ("{%- for m in messages -%}{% if loop.first %}{% continue %}{% endif %}x{%- endfor -%}", ""),
            ("{{ messages[0] | tojson }}", r#"{"role": "user", "content": "a,b"}"#),
            ("{{ messages[0] | tojson(indent=2) }}", "{\n  \"role\": \"user\",\n  \"content\": \"a,b\"\n}"),
            ("{% if strftime_now is defined %}now{% else %}a day{% endif %}", "a day"),
            ("{{ messages[0].content.startswith('a') and 'b' in messages[0].content }}", "True"),
        ] {
            check(source, messages, None, want);
        }
        let tools = r#"[{"type": "function", "function": {"name": "f", "description": "d", "about": 1.5}}]"#;
        check("{{ tools[0].function.name }}", "[]", Some(tools), "f");
        check("{{ tools | tojson }}", "[]", Some(tools), tools);
    }

    #[test]
    fn contents_in_parts_become_one_text_and_what_is_no_message_is_refused() {
        let parts = r#"[{"role": "user", "name": "n", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]"#;
        check(
            "{{ messages[0].content }} {{ messages[0] | tojson }}",
            parts,
            None,
            "a\nb {\"role\": \"user\", \"name\": \"n\", \"content\": \"a\\nb\"}",
        );
        let call = r#"[{"role": "assistant", "content": null, "tool_calls": [
            {"id": "1", "function": {"name": "f", "arguments": "{\"b\": 1, \"a\": [2]}"}}, {"function": {"name": "g", "arguments": "?"}}]}]"#;
        check(
            "{% for call in messages[0].tool_calls %}{{ call.function | tojson }}{% endfor %}",
            call,
            None,
            "{\"name\": \"f\", \"arguments\": {\"b\": 1, \"a\": [2]}}{\"name\": \"g\", \"arguments\": \"?\"}",
        );
        let refused = |messages: &str| template("x").prompt(messages, None).unwrap_err().to_string();
        for (messages, part) in [
            (r#""hello""#, "messages must be a list"),
            (r#"{"role": "user"}"#, "messages must be a list"),
            (r#"[{"role": "user", "content": "a"}, {"content": "b"}]"#, "message 1"),
            (r#"["a"]"#, "message 0"),
            (r#"[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]"#, "no text"),
        ] {
            assert!(refused(messages).contains(part), "{messages}");
        }
    }

    #[test]
    fn a_template_refuses_in_its_own_words_and_ends() {
        let refused = |source: &str| template(source).prompt("[]", None).unwrap_err();
        let error = refused("{{ raise_exception('roles must alternate') }}");
        assert!(matches!(&error, Error::Refused(words) if words.contains("roles must alternate")), "{error}");
        assert!(matches!(
            refused("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}"),
            Error::Refused(_)
        ));
        assert!(matches!(template("x").prompt("[", None), Err(Error::Refused(_))));
        assert!(matches!(Template::read(&json!({"chat_template": "{% if %}"}), None), Err(Error::Template(_))));
    }

    #[test]
    fn a_template_may_stand_in_a_list_or_a_file() {
        let list =
            json!({"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]});
        let prompt = |config: &Value, file| {
            Template::read(config, file).unwrap().map(|template| template.prompt("[]", None).unwrap())
        };
        assert_eq!(prompt(&list, None).as_deref(), Some("d"));
        assert_eq!(prompt(&list, Some("f")).as_deref(), Some("f"));
        assert_eq!(prompt(&json!({}), None), None);
    }
}

// The official OpenAI client for Node and the bundled model that writes text, on a worker or a coordinator: whole and streamed alike, a
// schema that is kept to, a tool that is called, a stream that is given up, an error that says why.
//
//     NEUROGRID_TEST_NODE=FOLDER_WITH_NODE_MODULES node openai_chat.mjs URL…

import assert from "node:assert/strict";
import { createRequire } from "node:module";

const OpenAI = createRequire(`${process.env.NEUROGRID_TEST_NODE}/`)("openai");

const question = { model: "debian-tiny-chat", temperature: 0, max_tokens: 40, messages: [{ role: "user", content: "What is the package tar for?" }] };

async function check(url) {
  const { completions } = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 }).chat;
  const whole = await completions.create(question);
  const answer = whole.choices[0].message.content;
  assert.ok(answer.length > 0 && whole.usage.completion_tokens > 0);

  let told = "", usage = null;
  for await (const chunk of await completions.create({ ...question, stream: true, stream_options: { include_usage: true } })) {
    told += chunk.choices[0]?.delta.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.equal(told, answer);
  assert.equal(usage.completion_tokens, whole.usage.completion_tokens);

  const schema = { type: "object", properties: { yes: { type: "boolean" } }, required: ["yes"], additionalProperties: false };
  const formed = await completions.create({ ...question, max_tokens: 200, response_format: { type: "json_schema", json_schema: { name: "answer", schema } } });
  assert.equal(typeof JSON.parse(formed.choices[0].message.content).yes, "boolean");

  const parameters = { type: "object", properties: { mode: { enum: ["on", "off"] } }, required: ["mode"], additionalProperties: false };
  const tools = [{ type: "function", function: { name: "light", parameters } }];
  const called = await completions.create({ ...question, model: "caller", max_tokens: 200, tools, tool_choice: { type: "function", function: { name: "light" } } });
  const [call] = called.choices[0].message.tool_calls;
  assert.equal(call.function.name, "light");
  assert.ok(["on", "off"].includes(JSON.parse(call.function.arguments).mode));

  // Given up after the first words: the loop ends, and nothing is left of it.
  const stream = await completions.create({ ...question, max_tokens: 400, ignore_eos: true, stream: true });
  for await (const chunk of stream) {
    if (chunk.choices[0]?.delta.content) break;
  }
  assert.ok(stream.controller.signal.aborted);

  await assert.rejects(completions.create({ ...question, max_tokens: 100000 }), (error) => error instanceof OpenAI.BadRequestError && error.code === "too_long");
  await assert.rejects(completions.create({ ...question, model: "nobody" }), (error) => error instanceof OpenAI.NotFoundError);
  return answer;
}

const answers = [];
for (const url of process.argv.slice(2)) answers.push(await check(url));
assert.ok(answers.every((answer) => answer === answers[0]));
console.log(`${answers.length} servers answer ${JSON.stringify(answers[0])}`);

//! The OpenAPI 3.1 document of `/v1`, made from the table of operations.

use schemars::generate::SchemaSettings;
use schemars::{Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::error::Problem;
use super::operation::{OPERATIONS, Operation, Verb};

/// Where schemas live in the document.
const SCHEMAS: &str = "#/components/schemas";

/// Makes the document.
pub(super) fn document() -> Value {
    let mut requests = generator(SchemaSettings::draft2020_12());
    let mut answers = generator(SchemaSettings::draft2020_12().for_serialize());
    let problem = answers.subschema_for::<Problem>();
    let mut paths = Map::new();
    for operation in OPERATIONS {
        let request = (operation.request)(&mut requests);
        let request = resolve(&request, &requests);
        let answer = (operation.answer)(&mut answers);
        let entry = paths.entry(operation.path).or_insert_with(|| json!({}));
        entry[verb(operation.verb)] = describe(operation, &request, &answer, &problem);
    }
    let mut schemas = Map::new();
    for generator in [&mut requests, &mut answers] {
        schemas.extend(generator.take_definitions(true));
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "wyd chat API",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "What the client protocol's `rpc` command offers, over HTTP. A request \
                is authorized by the token that a connection is opened with.",
        },
        "security": [{ "token": [] }],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "token": { "type": "http", "scheme": "bearer", "bearerFormat": "JWT" },
            },
            "schemas": schemas,
        },
    })
}

fn generator(settings: SchemaSettings) -> SchemaGenerator {
    settings
        .with(|settings| {
            settings.definitions_path = SCHEMAS.trim_start_matches('#').to_owned().into();
            settings.meta_schema = None;
        })
        .into_generator()
}

fn verb(verb: Verb) -> &'static str {
    match verb {
        Verb::Get => "get",
        Verb::Post => "post",
        Verb::Put => "put",
        Verb::Patch => "patch",
        Verb::Delete => "delete",
    }
}

/// Follows a reference to the definition it names.
fn resolve(schema: &Schema, generator: &SchemaGenerator) -> Value {
    let name = schema.get("$ref").and_then(Value::as_str);
    let name = name.and_then(|path| path.rsplit('/').next());
    let found = name.and_then(|name| generator.definitions().get(name));
    found.unwrap_or(schema.as_value()).clone()
}

fn describe(operation: &Operation, request: &Value, answer: &Schema, problem: &Schema) -> Value {
    let no_fields = Map::new();
    let fields = request["properties"].as_object().unwrap_or(&no_fields);
    let in_path = |name: &str| operation.path.contains(&format!("{{{name}}}"));
    let in_query = matches!(operation.verb, Verb::Get | Verb::Delete);
    let is_required = |name: &str| {
        let required = request["required"].as_array();
        required.is_some_and(|required| required.iter().any(|field| field == name))
    };
    let mut parameters = Vec::new();
    let mut body = Map::new();
    for (name, schema) in fields {
        let place = match name.as_str() {
            name if in_path(name) => "path",
            "idempotency_key" => "header",
            _ if in_query => "query",
            _ => {
                body.insert(name.clone(), schema.clone());
                continue;
            }
        };
        let name = if place == "header" {
            "Idempotency-Key"
        } else {
            name
        };
        parameters.push(json!({
            "name": name,
            "in": place,
            "required": place == "path" || is_required(name),
            "schema": schema,
        }));
    }
    let mut described = json!({
        "operationId": operation.method,
        "summary": operation.summary,
        "description": request["description"],
        "parameters": parameters,
        "responses": {
            "200": {
                "description": "Done.",
                "content": { "application/json": { "schema": answer } },
            },
            "default": {
                "description": "Refused: problem details (RFC 9457).",
                "content": { "application/problem+json": { "schema": problem } },
            },
        },
    });
    if !body.is_empty() {
        let required: Vec<&String> = body.keys().filter(|name| is_required(name)).collect();
        described["requestBody"] = json!({
            "required": !required.is_empty(),
            "content": { "application/json": { "schema": {
                "type": "object",
                "required": required,
                "properties": body,
            } } },
        });
    }
    described
}

import API
import HTTPTypes

/// The OpenAPI 3.1 document of the routes. `docs/openapi.json` is this text; a test holds the two together.
enum OpenAPIDocument {
    static func make(routes: [Route]) -> String {
        let paths = Dictionary(grouping: routes, by: \.path).sorted { $0.key < $1.key }.map { path, routes in
            JSONText.Member(
                name: path,
                value: .object(
                    routes.sorted { $0.method.rawValue < $1.method.rawValue }.map { route in
                        .init(name: route.method.rawValue.lowercased(), value: operation(route))
                    }))
        }
        let schemas = ObjectSchemas.all.sorted { $0.name < $1.name }.map { schema in
            JSONText.Member(name: schema.name, value: schema.json)
        }
        return JSONText.members([
            "openapi": .string("3.1.0"),
            "info": .members([
                "title": .string("Stillpoint storage node"), "version": .string(Release.version),
                "description": .string(
                    "Application-consistent snapshots of block storage. docs/api.md has the rules all routes share."
                ),
            ]),
            "security": .array([.members(["administrator": .array([])])]),
            "paths": .object(paths),
            "components": .members([
                "securitySchemes": .members([
                    "administrator": .members([
                        "type": .string("http"), "scheme": .string("bearer"),
                        "description": .string("The token in DATA/admin-token."),
                    ])
                ]),
                "schemas": .object(schemas),
            ]),
        ]).rendered() + "\n"
    }

    private static func operation(_ route: Route) -> JSONText {
        var members: [JSONText.Member] = [
            .init(name: "operationId", value: .string(route.operation)),
            .init(name: "summary", value: .string(route.summary)),
        ]
        switch route.access {
        case .administrator: break
        case .open, .enrolment: members.append(.init(name: "security", value: .array([])))
        case .loopbackOrAdministrator:
            members.append(
                .init(
                    name: "security",
                    value: .array([.object([]), .members(["administrator": .array([])])])))
        }
        let parameters = route.parameters.map(pathParameter) + route.query.map(queryParameter)
        if !parameters.isEmpty { members.append(.init(name: "parameters", value: .array(parameters))) }
        if let body = route.body {
            members.append(
                .init(
                    name: "requestBody",
                    value: .members([
                        "required": .boolean(true), "content": content("application/json", .named(body)),
                    ])))
        }
        if let type = route.streamType {
            members.append(
                .init(
                    name: "requestBody",
                    value: .members(["required": .boolean(true), "content": content(type, .string)])))
        }
        members.append(.init(name: "responses", value: responses(route)))
        return .object(members)
    }

    private static func pathParameter(_ name: String) -> JSONText {
        .members([
            "name": .string(name), "in": .string("path"), "required": .boolean(true), "schema": Schema.string.json,
        ])
    }

    private static func queryParameter(_ query: Route.Query) -> JSONText {
        .members([
            "name": .string(query.name), "in": .string("query"), "description": .string(query.summary),
            "schema": query.schema.json,
        ])
    }

    private static func responses(_ route: Route) -> JSONText {
        var success: [JSONText.Member] = [.init(name: "description", value: .string(route.answer.summary))]
        if let schema = route.answer.schema {
            success.append(.init(name: "content", value: content(route.answer.contentType, schema)))
        }
        var members: [JSONText.Member] = [.init(name: String(route.answer.status), value: .object(success))]
        var failures = route.failures
        if case .administrator = route.access { failures[401] = "unauthorized" }
        if route.body != nil, failures[400] == nil { failures[400] = "invalidRequest" }
        for (status, summary) in failures.sorted(by: { $0.key < $1.key }) {
            members.append(.init(name: String(status), value: failure(summary)))
        }
        members.append(.init(name: "default", value: failure("Any other failure.")))
        return .object(members)
    }

    private static func failure(_ summary: String) -> JSONText {
        .members(["description": .string(summary), "content": content("application/json", .named("Failure"))])
    }

    private static func content(_ type: String, _ schema: Schema) -> JSONText {
        .members([type: .members(["schema": schema.json])])
    }
}

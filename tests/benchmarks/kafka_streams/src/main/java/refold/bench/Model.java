package refold.bench;

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.core.JsonToken;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;

/** An order's summary, and the fold of one event into it. Stored as JSON, as every contender does. */
final class Model {
    private static final JsonFactory JSON = new JsonFactory();

    long items;
    long quantity;
    long totalCents;
    String last = "";

    static Serde<Model> serde() {
        return Serdes.serdeFrom(
                (topic, model) -> model == null ? null : model.json().getBytes(StandardCharsets.UTF_8),
                (topic, bytes) -> bytes == null ? null : parse(bytes));
    }

    String json() {
        return "{\"items\":" + items + ",\"quantity\":" + quantity + ",\"total_cents\":" + totalCents
                + ",\"last\":\"" + last + "\"}";
    }

    /** Fold one event: streams over its JSON once and builds no tree. */
    void fold(byte[] event) {
        String id = null;
        long eventQuantity = 0;
        long price = 0;
        try (JsonParser parser = JSON.createParser(event)) {
            parser.nextToken();
            for (String field = parser.nextFieldName(); field != null; field = parser.nextFieldName()) {
                if (field.equals("id")) {
                    id = parser.nextTextValue();
                } else if (field.equals("data")) {
                    parser.nextToken();
                    for (String inner = parser.nextFieldName(); inner != null; inner = parser.nextFieldName()) {
                        if (inner.equals("quantity")) {
                            eventQuantity = parser.nextLongValue(0);
                        } else if (inner.equals("price_cents")) {
                            price = parser.nextLongValue(0);
                        } else {
                            skip(parser);
                        }
                    }
                } else {
                    skip(parser);
                }
            }
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        }
        items += 1;
        quantity += eventQuantity;
        totalCents += eventQuantity * price;
        last = id;
    }

    private static Model parse(byte[] bytes) {
        Model model = new Model();
        try (JsonParser parser = JSON.createParser(bytes)) {
            parser.nextToken();
            for (String field = parser.nextFieldName(); field != null; field = parser.nextFieldName()) {
                switch (field) {
                    case "items" -> model.items = parser.nextLongValue(0);
                    case "quantity" -> model.quantity = parser.nextLongValue(0);
                    case "total_cents" -> model.totalCents = parser.nextLongValue(0);
                    case "last" -> model.last = parser.nextTextValue();
                    default -> skip(parser);
                }
            }
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        }
        return model;
    }

    private static void skip(JsonParser parser) throws IOException {
        if (parser.nextToken() == JsonToken.START_OBJECT || parser.currentToken() == JsonToken.START_ARRAY) {
            parser.skipChildren();
        }
    }
}
